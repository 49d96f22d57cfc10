//! `ndarray` arrays.

use ndarray::{ArrayBase, ArrayD, Data, Dimension, IxDyn};

use crate::error::{Error, Result};
use crate::tensor::{Element, Tensor, TensorView};

impl<'a> TensorView<'a> {
    /// A view of an array, which must be contiguous in standard (row-major) layout. `shape` is `array.shape()`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the array is not contiguous: pass `array.as_standard_layout()`.
    pub fn from_array<A: Element, S: Data<Elem = A>, D: Dimension>(array: &'a ArrayBase<S, D>) -> Result<Self> {
        let elements = array.as_slice().ok_or_else(|| {
            Error::invalid("the array is not contiguous in row-major layout: pass array.as_standard_layout()")
        })?;
        Self::from_slice(array.shape(), elements)
    }
}

impl Tensor {
    /// A tensor with a copy of an array of any layout.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the array's size overflows.
    pub fn from_array<A: Element, S: Data<Elem = A>, D: Dimension>(array: &ArrayBase<S, D>) -> Result<Self> {
        let standard = array.as_standard_layout();
        TensorView::from_array(&standard).map(|view| view.to_tensor())
    }

    /// An array with a copy of the elements.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the tensor is of another dtype.
    pub fn to_array<A: Element>(&self) -> Result<ArrayD<A>> {
        ArrayD::from_shape_vec(IxDyn(self.shape()), self.to_vec()?)
            .map_err(|error| Error::invalid(format!("ndarray refuses the shape: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, arr0, arr2};

    use super::*;

    #[test]
    fn arrays_convert() {
        let array = arr2(&[[1.0_f32, 2.0, 3.0], [4.0, 5.0, 6.0]]);
        assert_eq!(Tensor::from_array(&array).unwrap().to_array::<f32>().unwrap(), array.clone().into_dyn());
        assert!(TensorView::from_array(&array.t()).is_err());
        assert_eq!(Tensor::from_array(&array.t()).unwrap().shape(), [3, 2]);
        assert_eq!(Tensor::from_array(&arr0(7_i64)).unwrap().shape(), [0_usize; 0]);
        let empty = Array2::<f32>::zeros((0, 3));
        assert_eq!(Tensor::from_array(&empty).unwrap().shape(), [0, 3]);
    }
}
