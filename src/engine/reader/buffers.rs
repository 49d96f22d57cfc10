//! Reads into the caller's buffers, and what describes them: structures and shapes.

use crate::dtype::Dtype;
use crate::engine::read::again::unless_gone;
use crate::engine::read::copy::get_leaves_into;
use crate::engine::read::ragged::{Ragged, get_ragged_into};
use crate::engine::read::schemas::schemas;
use crate::engine::read::shapes::shapes;
use crate::engine::read::wanted::{LeafBuffer, Wanted, WantedLeaf};
use crate::engine::reader::Reader;
use crate::engine::report::SchemaUse;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::key::Keys;
use crate::schema::{ROOT, Schema};
use crate::tensor::Element;

impl Reader {
    /// Copies the rows of `keys` into the caller's contiguous `[keys, …row_shape]` buffer: the fastest read. `found`
    /// says which keys exist; the places of missing rows are left unchanged. Returns the number of rows found.
    ///
    /// ```
    /// # fn main() -> tensorcask::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let store = tensorcask::Store::open(dir.path(), "encoder")?;
    /// store.put_rows(&["a", "b"], &[2], &[1.0_f32, 2.0, 3.0, 4.0])?;
    /// let (mut rows, mut found) = ([0.0_f32; 6], [false; 3]);
    /// assert_eq!(store.get_batch_into(&["b", "?", "a"], &[2], &mut rows, &mut found)?, 2);
    /// assert_eq!((rows, found), ([3.0, 4.0, 0.0, 0.0, 1.0, 2.0], [true, false, true]));
    /// # store.close()
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Reader::get_batch`]; [`Error::Invalid`] if buffer or mask have the wrong length; [`Error::Item`] with
    /// [`Error::Mismatch`] if a row is of another dtype or shape; [`Error::DamagedRows`] if rows are damaged: all
    /// others were copied, and `found` is valid.
    pub fn get_batch_into<'a, T: Element>(
        &self,
        keys: impl Into<Keys<'a>>,
        row_shape: &[usize],
        out: &mut [T],
        found: &mut [bool],
    ) -> Result<usize> {
        self.get_batch_into_bytes(keys, T::DTYPE, row_shape, bytemuck::cast_slice_mut(out), found)
    }

    /// [`Reader::get_batch_into`] for any dtype, into little-endian bytes.
    ///
    /// # Errors
    /// As [`Reader::get_batch_into`].
    pub fn get_batch_into_bytes<'a>(
        &self,
        keys: impl Into<Keys<'a>>,
        dtype: Dtype,
        row_shape: &[usize],
        out: &mut [u8],
        found: &mut [bool],
    ) -> Result<usize> {
        self.copy(keys.into(), vec![WantedLeaf::new(ROOT, dtype, row_shape)], vec![out], found)
    }

    fn copy(
        &self,
        keys: Keys<'_>,
        leaves: Vec<WantedLeaf<'_>>,
        mut outs: Vec<&mut [u8]>,
        found: &mut [bool],
    ) -> Result<usize> {
        let wanted = Wanted::new(leaves, keys.len(), &outs, found.len())?;
        self.copy_wanted(keys, &wanted, &mut outs, found)
    }

    fn copy_wanted(
        &self,
        keys: Keys<'_>,
        wanted: &Wanted<'_>,
        outs: &mut [&mut [u8]],
        found: &mut [bool],
    ) -> Result<usize> {
        unless_gone(&self.state, || {
            let outs = outs.iter_mut().map(|out| &mut **out).collect();
            get_leaves_into(&self.state, keys, wanted, outs, found)
        })
    }

    /// [`Reader::get_batch_into`] for values of several leaves: copies each leaf that has a buffer, in one pass over the
    /// keys. Other leaves are not copied. A scalar is a leaf too: an integer is an `i64`, a float an `f64`, a boolean a
    /// byte ([`LeafBuffer::bytes`]).
    ///
    /// ```
    /// # fn main() -> tensorcask::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// use tensorcask::{LeafBuffer, Store, Tensor, Value};
    ///
    /// let store = Store::open(dir.path(), "encoder")?;
    /// let value = |pooled: [f32; 2], label: i64| -> tensorcask::Result<Value> {
    ///     let pooled = Tensor::from_slice(&[2], &pooled)?;
    ///     Ok(Value::from([("pooled", Value::from(pooled)), ("label", label.into()), ("text", "not read".into())]))
    /// };
    /// store.put_batch(&["a", "b"], &[value([1.0, 2.0], 7)?, value([3.0, 4.0], 8)?])?;
    ///
    /// let (mut pooled, mut labels, mut found) = ([0.0_f32; 4], [0_i64; 2], [false; 2]);
    /// let mut leaves = [
    ///     LeafBuffer::new("value/pooled", &[2], &mut pooled),
    ///     LeafBuffer::new("value/label", &[], &mut labels),
    /// ];
    /// assert_eq!(store.get_leaves_into(&["b", "a"], &mut leaves, &mut found)?, 2);
    /// assert_eq!((pooled, labels), ([3.0, 4.0, 1.0, 2.0], [8, 7]));
    /// # store.close()
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Reader::get_batch_into`]; [`Error::Mismatch`] also if a value has no such leaf.
    pub fn get_leaves_into<'a>(
        &self,
        keys: impl Into<Keys<'a>>,
        leaves: &mut [LeafBuffer<'_>],
        found: &mut [bool],
    ) -> Result<usize> {
        let (wanted, outs) = leaves.iter_mut().map(LeafBuffer::split).unzip();
        self.copy(keys.into(), wanted, outs, found)
    }

    /// Copies whole values, all of the structure `schema`: one contiguous `[keys, …shape]` buffer of little-endian bytes
    /// for each of its leaves, in their order. In contrast to [`Reader::get_leaves_into`], values with other leaves are
    /// a mismatch.
    ///
    /// # Errors
    /// As [`Reader::get_leaves_into`]; [`Error::Invalid`] if a leaf of `schema` differs in size from row to row.
    pub fn get_values_into<'a>(
        &self,
        keys: impl Into<Keys<'a>>,
        schema: &Schema,
        outs: &mut [&mut [u8]],
        found: &mut [bool],
    ) -> Result<usize> {
        let keys = keys.into();
        let restores = self.state.options().restore_dtype;
        let wanted = Wanted::whole(schema, restores, keys.len(), outs, found.len())?;
        self.copy_wanted(keys, &wanted, outs, found)
    }

    /// Copies tensors whose first dimension differs from row to row, such as tokens × width, one after another into
    /// `out`, which grows to what they need. `path` is a leaf ([`crate::Leaf::path`]; `value` for values that are a
    /// tensor), `entry_shape` the other dimensions. Row `i` has the entries from `offsets[i]` to `offsets[i + 1]`, each
    /// of as many elements as `entry_shape` has; keys that do not exist have none. `found` says which exist. Returns how
    /// many do. Buffers that are passed again are not allocated again.
    ///
    /// ```
    /// # fn main() -> tensorcask::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// use tensorcask::{Store, TensorView};
    ///
    /// let store = Store::open(dir.path(), "encoder")?;
    /// store.put("a", TensorView::from_slice(&[1, 2], &[1.0_f32, 2.0])?)?;
    /// store.put("b", TensorView::from_slice(&[3, 2], &[3.0_f32, 4.0, 5.0, 6.0, 7.0, 8.0])?)?;
    /// let (mut tokens, mut offsets, mut found) = (Vec::<f32>::new(), Vec::new(), [false; 3]);
    /// assert_eq!(store.get_ragged_into(&["a", "?", "b"], "value", &[2], &mut tokens, &mut offsets, &mut found)?, 2);
    /// assert_eq!((tokens, offsets), (vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], vec![0, 1, 1, 4]));
    /// # store.close()
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Reader::get_leaves_into`]. After [`Error::DamagedRows`] all other rows are there; damaged ones have no
    /// entries.
    pub fn get_ragged_into<'a, T: Element>(
        &self,
        keys: impl Into<Keys<'a>>,
        path: &str,
        entry_shape: &[usize],
        out: &mut Vec<T>,
        offsets: &mut Vec<usize>,
        found: &mut [bool],
    ) -> Result<usize> {
        let (keys, ragged) = (keys.into(), Ragged { path, dtype: T::DTYPE, entry_shape });
        unless_gone(&self.state, || get_ragged_into(&self.state, keys, ragged, out, offsets, found))
    }

    /// [`Reader::get_ragged_into`] for any dtype, into little-endian bytes. Offsets are in entries all the same.
    ///
    /// # Errors
    /// As [`Reader::get_ragged_into`].
    #[expect(clippy::too_many_arguments, reason = "the dtype, which the other form takes from the buffer")]
    pub fn get_ragged_into_bytes<'a>(
        &self,
        keys: impl Into<Keys<'a>>,
        path: &str,
        dtype: Dtype,
        entry_shape: &[usize],
        out: &mut Vec<u8>,
        offsets: &mut Vec<usize>,
        found: &mut [bool],
    ) -> Result<usize> {
        let (keys, ragged) = (keys.into(), Ragged { path, dtype, entry_shape });
        unless_gone(&self.state, || get_ragged_into(&self.state, keys, ragged, out, offsets, found))
    }

    /// The shape of the leaf at `path` ([`crate::Leaf::path`]; `value` for values that are a tensor) of each key; `None`
    /// for keys that do not exist. Reads no elements.
    ///
    /// # Errors
    /// Those of [`Reader::contains_batch`]; [`Error::Item`] with [`Error::Mismatch`] if a value has no such leaf, or it
    /// is a string or a byte string.
    pub fn shapes<'a>(&self, keys: impl Into<Keys<'a>>, path: &str) -> Result<Vec<Option<Vec<usize>>>> {
        let keys = keys.into();
        unless_gone(&self.state, || shapes(&self.state, keys, path))
    }

    /// Every structure of values in the store, with the numbers of its rows and segments; those with most rows first.
    /// A value of another structure, dtype or shape is put next to the existing ones, into segments of its own.
    /// O(segments).
    ///
    /// ```
    /// # fn main() -> tensorcask::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let store = tensorcask::Store::open(dir.path(), "encoder")?;
    /// store.put_rows(&["a", "b"], &[2], &[1.0_f32, 2.0, 3.0, 4.0])?;
    /// store.put("label", tensorcask::Value::Int(7))?;
    /// let found: Vec<_> = store.schemas()?.iter().map(|used| (used.schema.to_string(), used.rows)).collect();
    /// assert_eq!(found, [("F32 [2]".to_owned(), 2), ("int".to_owned(), 1)]);
    /// # store.close()
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Forked`].
    pub fn schemas(&self) -> Result<Vec<SchemaUse>> {
        schemas(&self.state)
    }
}
