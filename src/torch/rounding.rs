//! Makes what was just computed look as if it had been read: with `store_as` in force, a miss and a hit of the same
//! sample are the same bits.

use bytes::Bytes;

use super::convert::{dtype_of, kind, kind_of};
use super::error::torch;
use super::output::Output;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::schema::stored_dtype;
use crate::segment::build::cast_tensor;
use crate::value::Value;

/// What becomes of floats on the way through the store.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rounding {
    pub store_as: Option<Dtype>,
    pub restore: bool,
}

impl Rounding {
    /// Whether anything is changed at all.
    pub(super) const fn is_exact(self) -> bool {
        self.store_as.is_none()
    }

    /// The value as it will be read.
    pub(super) fn value(self, mut value: Value) -> Result<Value> {
        match &mut value {
            Value::Tensor(tensor) => *tensor = self.tensor(tensor.clone())?,
            Value::List(items) | Value::Tuple(items) => {
                for item in items {
                    *item = self.value(std::mem::take(item))?;
                }
            }
            Value::Map(items) => {
                for (_, item) in items {
                    *item = self.value(std::mem::take(item))?;
                }
            }
            _ => {}
        }
        Ok(value)
    }

    /// A batch of no rows as it will be read.
    pub(super) fn empty(self, output: &Output) -> Result<Output> {
        output.try_map(&mut |tensor| {
            let source = dtype_of(kind(tensor)?);
            let stored = source.map(|source| stored_dtype(source, self.store_as)).filter(|_| !self.restore);
            match stored.and_then(kind_of) {
                Some(kind) => tensor.f_to_kind(kind).map_err(torch("convert an empty batch")),
                None => Ok(tensor.shallow_clone()),
            }
        })
    }

    fn tensor(self, tensor: crate::Tensor) -> Result<crate::Tensor> {
        let source = tensor.dtype();
        let stored = stored_dtype(source, self.store_as);
        if stored == source {
            return Ok(tensor);
        }
        let mut bytes = Vec::new();
        cast_tensor(source, stored, tensor.data(), &mut bytes)?;
        if !self.restore {
            return crate::Tensor::new(stored, tensor.shape(), Bytes::from(bytes));
        }
        let mut restored = Vec::new();
        cast_tensor(stored, source, &bytes, &mut restored)?;
        crate::Tensor::new(source, tensor.shape(), Bytes::from(restored))
    }
}
