//! Converts computed values to the form in which they will be read. With `store_as`, a miss and a hit of a sample then
//! have the same bits.

use tensorcask::{Options, Value};

use crate::error::Result;
use crate::framework::Framework;
use crate::values::output::Output;

/// The conversion of floats on the way through the store, as its options say.
#[derive(Debug, Clone)]
pub(crate) struct Rounding(pub Options);

impl Rounding {
    /// Whether values are unchanged.
    pub(crate) const fn is_exact(&self) -> bool {
        self.0.stores_as().is_none()
    }

    /// The value as it will be read.
    pub(crate) fn value(&self, mut value: Value) -> Result<Value> {
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

    /// An empty batch as it will be read.
    pub(crate) fn empty<F: Framework>(&self, output: &Output<F>) -> Result<Output<F>> {
        output.try_map(&mut |tensor| {
            let source = F::dtype(tensor)?;
            let read = source.map(|source| self.0.read_dtype(source)).filter(|read| Some(*read) != source);
            match read.filter(|read| F::holds(*read)) {
                // There are no elements to convert.
                Some(read) => F::finish(F::buffer(read, &F::shape(tensor))?),
                None => Ok(F::share(tensor)),
            }
        })
    }

    fn tensor(&self, tensor: tensorcask::Tensor) -> Result<tensorcask::Tensor> {
        let stored = self.0.stored_dtype(tensor.dtype());
        if stored == tensor.dtype() {
            return Ok(tensor);
        }
        let (read, rounded) = (self.0.read_dtype(tensor.dtype()), tensor.cast(stored)?);
        if read == stored { Ok(rounded) } else { Ok(rounded.cast(read)?) }
    }
}
