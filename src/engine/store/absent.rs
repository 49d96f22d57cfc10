//! Puts of keys that do not exist yet.

use crate::dtype::Dtype;
use crate::engine::follow::take_in_others;
use crate::engine::store::Store;
use crate::error::{Error, Result};
use crate::key::{AsKey, Keys};
use crate::segment::build::with_data;
use crate::segment::columns::Columns;
use crate::tensor::Element;
use crate::value::AsValue;

impl Store {
    /// Puts a value if the key does not exist; returns whether it did so.
    ///
    /// Of several threads of this handle, exactly one puts the key: no other put comes between the lookup and the put.
    /// Other processes are not excluded. A row counts as there if its writer had flushed it when the call began; if two
    /// processes put a key at the same time, both return `true`, and the later row wins, as with [`Store::put`].
    ///
    /// ```
    /// # fn main() -> tensorcask::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let store = tensorcask::Store::open(dir.path(), "encoder")?;
    /// use tensorcask::Value;
    ///
    /// assert!(store.put_if_absent("a", Value::Int(1))?);
    /// assert!(!store.put_if_absent("a", Value::Int(2))?);
    /// assert_eq!(store.get("a")?, Some(Value::Int(1)));
    /// # store.close()
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Store::put`]; [`Error::Corrupt`] if a batch that may hold the key is damaged.
    pub fn put_if_absent(&self, key: impl AsKey, value: impl AsValue) -> Result<bool> {
        let written = self.put_batch_if_absent(&[key.as_key()?], &[value]).map_err(Error::into_cause)?;
        Ok(written.first().copied().unwrap_or(false))
    }

    /// Puts those values whose keys do not exist, as [`Store::put_if_absent`]; returns which were put. If a key occurs
    /// twice, the first value wins. Each key is put by itself: the batch as a whole is not atomic.
    ///
    /// # Errors
    /// As [`Store::put_batch`]; [`Error::Item`] with [`Error::Corrupt`] if a batch that may hold a key is damaged. Keys
    /// at earlier positions may be put then.
    pub fn put_batch_if_absent<'a>(&self, keys: impl Into<Keys<'a>>, values: &[impl AsValue]) -> Result<Vec<bool>> {
        let keys = keys.into();
        let mut written = Vec::with_capacity(keys.len());
        let built = self.build(keys, values)?;
        let _admitted = self.admit(&built)?;
        take_in_others(&self.inner.state, self.inner.lane);
        for columns in built {
            self.put_absent(keys, columns, &mut written)?;
        }
        Ok(written)
    }

    /// [`Store::put_rows`] for those keys that do not exist, as [`Store::put_batch_if_absent`]; returns which were put.
    ///
    /// # Errors
    /// As [`Store::put_rows`] and [`Store::put_batch_if_absent`].
    pub fn put_rows_if_absent<'a, T: Element>(
        &self,
        keys: impl Into<Keys<'a>>,
        row_shape: &[usize],
        rows: &[T],
    ) -> Result<Vec<bool>> {
        self.put_rows_bytes_if_absent(keys, T::DTYPE, row_shape, bytemuck::cast_slice(rows))
    }

    /// [`Store::put_rows_if_absent`] for any dtype, from little-endian bytes.
    ///
    /// # Errors
    /// As [`Store::put_rows_if_absent`].
    pub fn put_rows_bytes_if_absent<'a>(
        &self,
        keys: impl Into<Keys<'a>>,
        dtype: Dtype,
        row_shape: &[usize],
        rows: &[u8],
    ) -> Result<Vec<bool>> {
        let keys = keys.into();
        let mut written = Vec::with_capacity(keys.len());
        self.inner.puts.check_process()?;
        take_in_others(&self.inner.state, self.inner.lane);
        self.in_chunks(keys, dtype, row_shape, rows, &mut |columns, values| {
            let columns = match values {
                Some(values) => with_data(columns, dtype, values, self.inner.puts.buffers())?,
                None => columns,
            };
            self.put_absent(keys, columns, &mut written)
        })?;
        Ok(written)
    }

    /// Puts the rows that follow those of `written`, and adds which were put.
    fn put_absent(&self, keys: Keys<'_>, columns: Columns, written: &mut Vec<bool>) -> Result<()> {
        let first = written.len();
        let put = self.inner.puts.put_absent(columns, |row, error| keys.item_error(first + row, error))?;
        written.extend(put);
        Ok(())
    }
}
