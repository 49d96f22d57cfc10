//! `safetensors` dtypes and views.

use safetensors::tensor::{Dtype as Theirs, TensorView as TheirView};

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::tensor::{Tensor, TensorView};

impl TryFrom<Theirs> for Dtype {
    type Error = Error;

    fn try_from(dtype: Theirs) -> Result<Self> {
        // Both crates use the names of the format.
        let name = dtype.to_string();
        Self::from_name(&name).ok_or_else(|| Error::invalid(format!("the safetensors dtype {name} is not known")))
    }
}

impl TryFrom<Dtype> for Theirs {
    type Error = Error;

    fn try_from(dtype: Dtype) -> Result<Self> {
        serde_json::from_value(serde_json::Value::String(dtype.name().to_owned()))
            .map_err(|error| Error::invalid(format!("safetensors has no dtype {dtype}: {error}")))
    }
}

impl<'a> TryFrom<&'a TheirView<'a>> for TensorView<'a> {
    type Error = Error;

    fn try_from(view: &'a TheirView<'a>) -> Result<Self> {
        Self::new(view.dtype().try_into()?, view.shape(), view.data())
    }
}

impl<'a> TryFrom<&'a Tensor> for TheirView<'a> {
    type Error = Error;

    fn try_from(tensor: &'a Tensor) -> Result<Self> {
        Self::new(tensor.dtype().try_into()?, tensor.shape().to_vec(), tensor.data())
            .map_err(|error| Error::invalid(format!("safetensors refuses the tensor: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dtype_converts() {
        for &dtype in Dtype::ALL {
            let theirs: Theirs = dtype.try_into().unwrap();
            assert_eq!(theirs.bitsize(), dtype.bits());
            assert_eq!(Dtype::try_from(theirs).unwrap(), dtype);
        }
    }

    #[test]
    fn views_convert() {
        let tensor = Tensor::from_slice(&[2, 2], &[1.0_f32, f32::NAN, -0.0, 4.0]).unwrap();
        let theirs = TheirView::try_from(&tensor).unwrap();
        assert_eq!(TensorView::try_from(&theirs).unwrap().to_tensor(), tensor);
    }
}
