//! Tensors: a dtype, a shape, and contiguous little-endian bytes in row-major order.

use std::fmt;

use bytemuck::allocation::pod_collect_to_vec;
use bytemuck::{Pod, cast_slice, try_cast_slice};
use bytes::Bytes;

use crate::cast::cast_tensor;
use crate::dtype::Dtype;
use crate::error::{Error, Result};

#[cfg(target_endian = "big")]
compile_error!(
    "tensorcask stores little-endian elements and hands out views of them: big-endian targets are not supported"
);

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that is the element of a [`Dtype`]. Only this crate implements it.
pub trait Element: Pod + sealed::Sealed {
    /// The dtype.
    const DTYPE: Dtype;
}

macro_rules! elements {
    ($($type:ty => $dtype:ident),* $(,)?) => {
        $(
            impl sealed::Sealed for $type {}
            impl Element for $type { const DTYPE: Dtype = Dtype::$dtype; }
        )*
    };
}
elements! {
    u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64,
    f32 => F32, f64 => F64, half::f16 => F16, half::bf16 => BF16, [f32; 2] => C64,
}

/// Dimensions of a view that need no allocation.
const INLINE_RANK: usize = 6;

/// The shape of a view: owned, or borrowed from a tensor that outlives it.
#[derive(Clone)]
enum Shape<'a> {
    Borrowed(&'a [usize]),
    Inline { rank: usize, dims: [usize; INLINE_RANK] },
    Boxed(Box<[usize]>),
}

impl Shape<'_> {
    fn copy_of(shape: &[usize]) -> Self {
        let rank = shape.len();
        let mut dims = [0; INLINE_RANK];
        match dims.get_mut(..rank) {
            Some(own) => {
                own.copy_from_slice(shape);
                Self::Inline { rank, dims }
            }
            None => Self::Boxed(shape.into()),
        }
    }

    fn as_slice(&self) -> &[usize] {
        match self {
            Self::Borrowed(shape) => shape,
            Self::Inline { rank, dims } => dims.get(..*rank).unwrap_or_default(),
            Self::Boxed(shape) => shape,
        }
    }
}

/// A tensor whose bytes are borrowed. The shape is owned, so that a function can return a view of data that it was
/// given:
///
/// ```
/// use tensorcask::{Result, TensorView};
///
/// fn pairs(data: &[f32]) -> Result<TensorView<'_>> {
///     TensorView::from_slice(&[data.len() / 2, 2], data)
/// }
/// assert_eq!(pairs(&[1.0, 2.0, 3.0, 4.0])?.shape(), [2, 2]);
/// # Ok::<(), tensorcask::Error>(())
/// ```
#[derive(Clone)]
pub struct TensorView<'a> {
    dtype: Dtype,
    shape: Shape<'a>,
    data: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// A view of `data` (row-major, little-endian) as a tensor of `dtype` and `shape`. A shape of no dimensions is a
    /// single element. Copies the shape, without an allocation if it has at most six dimensions.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the length of `data` does not match dtype and shape.
    pub fn new(dtype: Dtype, shape: &[usize], data: &'a [u8]) -> Result<Self> {
        check_len(dtype, shape, data.len())?;
        Ok(Self { dtype, shape: Shape::copy_of(shape), data })
    }

    /// A view of a slice of elements.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the number of elements does not match the shape.
    pub fn from_slice<T: Element>(shape: &[usize], elements: &'a [T]) -> Result<Self> {
        Self::new(T::DTYPE, shape, cast_slice(elements))
    }

    /// [`TensorView::new`] with a borrowed shape: for many rows of one shape.
    pub(crate) fn with_shape_of(dtype: Dtype, shape: &'a [usize], data: &'a [u8]) -> Result<Self> {
        check_len(dtype, shape, data.len())?;
        Ok(Self { dtype, shape: Shape::Borrowed(shape), data })
    }

    /// A view of the same tensor that borrows the shape of this one.
    pub(crate) fn reborrow(&self) -> TensorView<'_> {
        TensorView { dtype: self.dtype, shape: Shape::Borrowed(self.shape()), data: self.data }
    }

    /// The element type.
    #[must_use]
    pub const fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The shape, outermost dimension first.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        self.shape.as_slice()
    }

    /// The bytes.
    #[must_use]
    pub const fn data(&self) -> &'a [u8] {
        self.data
    }

    /// An owned tensor, with a copy of the bytes.
    #[must_use]
    pub fn to_tensor(&self) -> Tensor {
        Tensor { dtype: self.dtype, shape: self.shape().into(), data: Bytes::copy_from_slice(self.data) }
    }
}

impl PartialEq for TensorView<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.dtype == other.dtype && self.shape() == other.shape() && self.data == other.data
    }
}

impl Eq for TensorView<'_> {}

/// Fails unless a tensor of `dtype` and `shape` takes `len_bytes`.
fn check_len(dtype: Dtype, shape: &[usize], len_bytes: usize) -> Result<()> {
    match dtype.tensor_len_bytes(shape) {
        Some(expected) if expected == len_bytes => Ok(()),
        Some(expected) => Err(Error::invalid(format!(
            "a {dtype} tensor of shape {shape:?} takes {expected} bytes, but {len_bytes} were passed: pass the whole \
             contiguous tensor"
        ))),
        None => Err(Error::invalid(format!(
            "a {dtype} tensor cannot have shape {shape:?}: its size overflows, or its packed elements do not fill \
             whole bytes"
        ))),
    }
}

/// A tensor that owns its bytes, or shares them: a value read from an uncompressed segment is zero-copy, and keeps the
/// mapping of the file alive. Cloning is O(1).
#[derive(Clone, PartialEq, Eq)]
pub struct Tensor {
    dtype: Dtype,
    shape: Box<[usize]>,
    data: Bytes,
}

impl Tensor {
    /// A tensor over `data`, which is not copied.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the length of `data` does not match dtype and shape.
    pub fn new(dtype: Dtype, shape: &[usize], data: impl Into<Bytes>) -> Result<Self> {
        let data = data.into();
        check_len(dtype, shape, data.len())?;
        Ok(Self { dtype, shape: shape.into(), data })
    }

    /// A tensor with a copy of `elements`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the number of elements does not match the shape.
    pub fn from_slice<T: Element>(shape: &[usize], elements: &[T]) -> Result<Self> {
        TensorView::from_slice(shape, elements).map(|view| view.to_tensor())
    }

    /// A tensor of dtype [`Dtype::Bool`].
    ///
    /// # Errors
    /// [`Error::Invalid`] if the number of elements does not match the shape.
    pub fn from_bools(shape: &[usize], elements: &[bool]) -> Result<Self> {
        Self::new(Dtype::Bool, shape, elements.iter().map(|&flag| u8::from(flag)).collect::<Vec<u8>>())
    }

    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The shape, outermost dimension first.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The bytes, row-major and little-endian.
    #[must_use]
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// A borrowed view.
    #[must_use]
    pub fn view(&self) -> TensorView<'_> {
        TensorView { dtype: self.dtype, shape: Shape::Borrowed(&self.shape), data: &self.data }
    }

    /// The elements, zero-copy, or `None` if they are of another dtype or not aligned for `T` in memory (see
    /// [`Tensor::to_vec`]).
    #[must_use]
    pub fn as_slice<T: Element>(&self) -> Option<&[T]> {
        (T::DTYPE == self.dtype).then(|| try_cast_slice(&self.data).ok()).flatten()
    }

    /// A copy of the elements.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the tensor is of another dtype.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        if T::DTYPE == self.dtype {
            Ok(pod_collect_to_vec(&self.data))
        } else {
            Err(Error::invalid(format!("the tensor is {}, not {}: read it as its own dtype", self.dtype, T::DTYPE)))
        }
    }

    /// The same tensor in another float dtype, each element rounded to the nearest, ties to even.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless both dtypes are F16, BF16, F32 or F64.
    pub fn cast(&self, dtype: Dtype) -> Result<Self> {
        let mut data = Vec::new();
        cast_tensor(self.dtype, dtype, &self.data, &mut data)?;
        Self::new(dtype, &self.shape, data)
    }
}

/// Dtype and shape; the elements are left out.
impl fmt::Debug for TensorView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {:?})", self.dtype, self.shape())
    }
}

/// Dtype and shape; the elements are left out.
impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.view().fmt(f)
    }
}

impl<'a> From<&'a Tensor> for TensorView<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        tensor.view()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_must_fit() {
        assert!(Tensor::from_slice(&[2, 2], &[1.0_f32, 2.0, 3.0]).is_err());
        assert!(Tensor::from_slice(&[], &[1.0_f32]).is_ok());
        assert!(Tensor::from_slice::<f32>(&[0, 7], &[]).is_ok());
        assert!(TensorView::new(Dtype::F32, &[usize::MAX, 9], &[]).is_err());
    }

    #[test]
    fn views_own_their_shape() {
        fn column(data: &[u8], rank: usize) -> TensorView<'_> {
            TensorView::new(Dtype::U8, &[vec![data.len()], vec![1; rank - 1]].concat(), data).unwrap()
        }
        for rank in [1, INLINE_RANK, INLINE_RANK + 1, 40] {
            let view = column(&[1, 2, 3], rank);
            assert_eq!((view.shape().len(), view.shape()[0]), (rank, 3));
            assert_eq!(view, view.reborrow());
            assert_eq!(view.clone().to_tensor().view(), view);
            assert_ne!(view, column(&[1, 2, 3], rank + 1));
        }
    }

    #[test]
    fn elements_round_trip() {
        let tensor = Tensor::from_slice(&[3], &[1_i64, -2, 3]).unwrap();
        assert_eq!(tensor.to_vec::<i64>().unwrap(), [1, -2, 3]);
        assert!(tensor.to_vec::<u64>().is_err());
        assert_eq!(tensor.as_slice::<f32>(), None);
        assert_eq!(format!("{tensor:?}"), "Tensor(I64 [3])");
        assert_eq!(Tensor::from_bools(&[2], &[true, false]).unwrap().data().as_ref(), [1, 0]);
    }
}
