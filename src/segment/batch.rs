//! A committed batch: parsed strictly from its message, with rows checked as they are read.
//!
//! arrow-rs's reader is not used, because it trusts its input. Here every count and offset is compared with the plan of
//! the segment's structure and with the bytes that are there, before anything is accessed.

use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arrow_ipc::{Message, MessageHeader, MetadataVersion, RecordBatch, root_as_message};
use bytes::Bytes;

use super::columns::{Columns, KeyColumn, LeafColumn};
use super::layout::{CONTINUATION, Frame};
use super::message::{fixed_len, fixed_node_len};
use super::plan::{Plan, Role};
use crate::checksum::crc32;
use crate::error::{Error, Result};
use crate::io::residency::read_ahead;
use crate::key::KeyKind;
use crate::schema::{LeafKind, RowLayout, RowSchema, Storage};

/// When row checksums are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Verify {
    /// On every read.
    Always,
    /// When a row is first read through a handle (tracked in one bit a row).
    #[default]
    FirstRead,
    /// Not at all. Bounds are still checked.
    Never,
}

/// The checksums of a batch.
#[derive(Debug, Default)]
struct Checksums {
    /// Of rows, four bytes each.
    rows: Bytes,
    /// Of the leaves that have their own, row after row.
    leaves: Bytes,
}

/// One committed batch.
#[derive(Debug)]
pub(crate) struct Batch {
    pub columns: Columns,
    /// One bit for each row whose checksum was compared.
    verified: Box<[AtomicU64]>,
    /// Rows without that bit.
    unverified_rows: AtomicU32,
    pub frame: Frame,
    path: Arc<Path>,
    checksums: Checksums,
    /// How many leaves have checksums of their own.
    leaf_crcs: usize,
    /// For each row, one bit for each leaf that was checked without the others. Made when a leaf is first read alone.
    verified_leaves: OnceLock<Box<[AtomicU64]>>,
    /// How often a sampled call read it.
    reads: AtomicU32,
}

/// The flatbuffer of the message that `prefix_and_metadata` starts with, and the bytes of prefix and metadata.
pub(crate) fn parse_message(bytes: &[u8]) -> Result<(Message<'_>, usize), String> {
    let Some((prefix, rest)) = bytes.split_first_chunk::<8>() else {
        return Err("expected a message, found the end of the file".into());
    };
    let [a, b, c, d, len @ ..] = *prefix;
    if [a, b, c, d] != CONTINUATION {
        return Err("expected a message's continuation marker, found other bytes".into());
    }
    let len = usize::try_from(i32::from_le_bytes(len)).map_err(|_| "a message's length is negative".to_owned())?;
    if len == 0 {
        return Err("expected a message, found the end of the stream".into());
    }
    let metadata = rest.get(..len).ok_or_else(|| format!("a message of {len} bytes reaches beyond the file"))?;
    let message = root_as_message(metadata).map_err(|error| format!("a message's flatbuffer is invalid: {error}"))?;
    if message.version() != MetadataVersion::V5 {
        return Err("a message is not of Arrow metadata version 5".into());
    }
    Ok((message, len + 8))
}

impl Batch {
    /// Parses the message that `frame` describes; `message` holds exactly its bytes. O(columns), and O(structure
    /// bytes) for the checksum.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if anything is damaged.
    pub(crate) fn parse(
        path: &Arc<Path>,
        rows: (&Arc<RowSchema>, RowLayout),
        frame: Frame,
        message: &Bytes,
        check_structure: bool,
    ) -> Result<Self> {
        let corrupt = |what: String| Error::corrupt(&**path, frame.offset, what);
        let structure = message
            .get(..usize::try_from(frame.structure_len_bytes).unwrap_or(usize::MAX))
            .ok_or_else(|| corrupt("a batch's structure is longer than the batch".into()))?;
        if check_structure {
            read_ahead(structure);
        }
        if check_structure && crc32(structure) != frame.structure_crc {
            return Err(corrupt("the checksum of a batch's keys and offsets does not match its bytes".into()));
        }
        Self::parse_parts(path, rows, frame, message)
    }

    /// Parses a batch whose structure checksum does not match. Its rows are valid if their own checksums match.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if its layout cannot be understood.
    pub(super) fn parse_damaged(
        path: &Arc<Path>,
        rows: (&Arc<RowSchema>, RowLayout),
        frame: Frame,
        message: &Bytes,
    ) -> Result<Self> {
        Self::parse_parts(path, rows, frame, message)
    }

    fn parse_parts(
        path: &Arc<Path>,
        (schema, layout): (&Arc<RowSchema>, RowLayout),
        frame: Frame,
        message: &Bytes,
    ) -> Result<Self> {
        let corrupt = |what: String| Error::corrupt(&**path, frame.offset, what);
        let (header, metadata_len) = parse_message(message).map_err(corrupt)?;
        if metadata_len as u64 != u64::from(frame.metadata_len_bytes) {
            return Err(corrupt(format!(
                "expected {} bytes of metadata, found {metadata_len}",
                frame.metadata_len_bytes
            )));
        }
        let body = message.slice(metadata_len..);
        let rows = frame.rows as usize;
        let (columns, checksums) = parse_columns(&header, (schema, layout), rows, &body).map_err(corrupt)?;
        let verified = (0..columns.rows.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let unverified_rows = AtomicU32::new(frame.rows);
        Ok(Self {
            columns,
            verified,
            unverified_rows,
            frame,
            path: Arc::clone(path),
            checksums,
            leaf_crcs: layout.leaf_crcs,
            verified_leaves: OnceLock::new(),
            reads: AtomicU32::new(0),
        })
    }

    /// Counts a sampled read.
    #[inline]
    pub(crate) fn note_read(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    /// The sampled reads.
    pub(super) fn sampled_reads(&self) -> u32 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Halves the sampled reads.
    pub(super) fn halve_reads(&self) {
        self.reads.store(self.sampled_reads() / 2, Ordering::Relaxed);
    }

    /// The error of damage in `row`.
    pub(crate) fn corrupt(&self, row: usize, what: &str) -> Error {
        Error::corrupt(
            &*self.path,
            self.frame.offset,
            format!("row {} of the segment: {what}", self.frame.first_row + row as u64),
        )
    }

    /// Compares the checksum of `row` as the policy wants. O(bytes of the row) on a first read, else O(1).
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it does not match.
    #[inline]
    pub(crate) fn check_row(&self, row: usize, verify: Verify) -> Result<()> {
        if self.is_checked(row, verify) {
            return Ok(());
        }
        if !self.matches(row, |_| true) {
            return Err(self.mismatch(row));
        }
        if verify == Verify::FirstRead {
            self.set_verified(row);
        }
        Ok(())
    }

    /// As [`Batch::check_row`], but only for `leaves`, whose numbers ascend. If leaves have no checksums of their own, the
    /// whole row is compared. O(bytes of these leaves) on a first read.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a checksum does not match.
    pub(crate) fn check_leaves(&self, row: usize, verify: Verify, leaves: &[usize]) -> Result<()> {
        if self.leaf_crcs == 0 {
            return self.check_row(row, verify);
        }
        if self.leaves_are_checked(row, verify, leaves) {
            return Ok(());
        }
        if !self.matches(row, |leaf| leaves.binary_search(&leaf).is_ok()) {
            return Err(self.mismatch(row));
        }
        if verify == Verify::FirstRead {
            let bits = self.columns.rows * self.columns.leaves.len();
            let words = || (0..bits.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
            let words = self.verified_leaves.get_or_init(words);
            for bit in leaves.iter().map(|leaf| row * self.columns.leaves.len() + leaf) {
                if let Some(word) = words.get(bit / 64) {
                    word.fetch_or(1 << (bit % 64), Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }

    /// Whether [`Batch::check_leaves`] has nothing left to compare.
    #[inline]
    pub(crate) fn leaves_are_checked(&self, row: usize, verify: Verify, leaves: &[usize]) -> bool {
        let Some(words) = self.verified_leaves.get().filter(|_| verify == Verify::FirstRead) else {
            return self.is_checked(row, verify);
        };
        let is_set =
            |bit: usize| words.get(bit / 64).is_some_and(|word| word.load(Ordering::Relaxed) >> (bit % 64) & 1 == 1);
        let width = self.columns.leaves.len();
        leaves.iter().all(|leaf| is_set(row * width + leaf)) || self.is_checked(row, verify)
    }

    /// Whether `leaf` has a checksum of its own.
    pub(crate) fn has_leaf_crc(&self, leaf: usize) -> bool {
        self.leaf_crcs > 0 && self.columns.schema.leaves.get(leaf).is_some_and(LeafKind::has_crc)
    }

    fn mismatch(&self, row: usize) -> Error {
        self.corrupt(row, "the row's checksum does not match its bytes")
    }

    /// Whether `row` matches its checksum, and those of its leaves that are `wanted` match theirs. Its commit timestamp
    /// must not be later than the frame says: a copy of the row would be newer than the row.
    fn matches(&self, row: usize, wanted: impl Fn(usize) -> bool) -> bool {
        if self.columns.time(row).is_some_and(|time| time > self.frame.timestamp) {
            return false;
        }
        let leaf_crcs = self.leaf_crcs_of(row);
        let expected = self.checksums.rows.get(row * 4..row * 4 + 4);
        let found = self.columns.row_crc(self.frame.seed, row, leaf_crcs).map(u32::to_le_bytes);
        let leaves_match = |leaf_crcs| self.columns.leaves_match(self.frame.seed, row, leaf_crcs, wanted) == Some(true);
        found.is_some_and(|found| expected == Some(&found)) && leaf_crcs.is_none_or(leaves_match)
    }

    /// The checksums of the leaves of `row` that have their own, if any have.
    fn leaf_crcs_of(&self, row: usize) -> Option<&[u8]> {
        let width = self.leaf_crcs * 4;
        // Out of bounds, no checksum matches.
        (width > 0).then(|| self.checksums.leaves.get(row * width..(row + 1) * width).unwrap_or(&[]))
    }

    /// When `row` was committed: never after its frame says.
    #[inline]
    pub(crate) fn timestamp(&self, row: usize) -> u64 {
        let last = self.frame.timestamp;
        self.columns.time(row).map_or(last, |time| time.min(last))
    }

    /// The earliest commit timestamp of its rows. O(rows) if they have their own, else O(1).
    pub(crate) fn first_timestamp(&self) -> u64 {
        let rows = if self.columns.times.is_some() { 0..self.columns.rows } else { 0..0 };
        rows.map(|row| self.timestamp(row)).min().unwrap_or(self.frame.timestamp)
    }

    /// About the bytes that `row` takes in a segment. O(leaves).
    pub(crate) fn row_len_bytes(&self, row: usize) -> Option<usize> {
        let layout = RowLayout { has_times: self.columns.times.is_some(), leaf_crcs: self.leaf_crcs };
        Some(self.columns.row_len_bytes(row)? + 4 + layout.len_bytes(1))
    }

    fn set_verified(&self, row: usize) {
        let Some(word) = self.verified.get(row / 64) else { return };
        let bit = 1 << (row % 64);
        if word.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            self.unverified_rows.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Takes over from `same`, the same batch in the same bytes, which rows were compared with their checksums.
    pub(crate) fn trust(&self, same: &Self) {
        for (word, known) in self.verified.iter().zip(&same.verified) {
            let known = known.load(Ordering::Relaxed);
            let added = known & !word.fetch_or(known, Ordering::Relaxed);
            self.unverified_rows.fetch_sub(added.count_ones(), Ordering::Relaxed);
        }
    }

    /// Whether the checksums of all rows were compared.
    #[inline]
    pub(crate) fn is_verified(&self) -> bool {
        self.unverified_rows.load(Ordering::Relaxed) == 0
    }

    /// The file, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether [`Batch::check_row`] has nothing left to compare.
    #[inline]
    pub(crate) fn is_checked(&self, row: usize, verify: Verify) -> bool {
        match verify {
            Verify::Never => true,
            Verify::Always => false,
            Verify::FirstRead => {
                self.verified.get(row / 64).is_some_and(|word| word.load(Ordering::Relaxed) >> (row % 64) & 1 == 1)
            }
        }
    }

    /// The checksum of `row`, without touching it, if [`Batch::check_row`] will compare it.
    pub(crate) fn crc_to_compare(&self, row: usize, verify: Verify) -> Option<&[u8]> {
        if self.is_checked(row, verify) { None } else { self.checksums.rows.get(row * 4..row * 4 + 4) }
    }

    /// The rows whose checksums do not match. O(bytes).
    pub(crate) fn damaged_rows(&self) -> Vec<usize> {
        self.columns.leaves.iter().for_each(|leaf| read_ahead(leaf.data()));
        (0..self.columns.rows).filter(|&row| self.check_row(row, Verify::Always).is_err()).collect()
    }
}

fn parse_columns(
    message: &Message<'_>,
    (schema, layout): (&Arc<RowSchema>, RowLayout),
    rows: usize,
    body: &Bytes,
) -> Result<(Columns, Checksums), String> {
    if message.header_type() != MessageHeader::RecordBatch {
        return Err("expected a record batch".into());
    }
    let batch = message.header_as_record_batch().ok_or("expected a record batch")?;
    let plan = Plan::new(schema, layout);
    check_nodes(&batch, &plan, rows, message.bodyLength(), body.len())?;
    let buffers = batch.buffers().ok_or("a batch has no buffers")?;
    if buffers.len() != plan.buffers.len() {
        return Err(format!("expected {} buffers, found {}", plan.buffers.len(), buffers.len()));
    }
    let mut slices = Slices { times: layout.has_times.then(Bytes::new), ..Slices::default() };
    slices.leaves.resize_with(schema.leaves.len(), Default::default);
    for (role, buffer) in plan.buffers.iter().zip(buffers) {
        let bounds = usize::try_from(buffer.offset())
            .ok()
            .zip(usize::try_from(buffer.length()).ok())
            .and_then(|(start, len)| Some((start, start.checked_add(len)?)))
            .filter(|(_, end)| *end <= body.len())
            .ok_or_else(|| format!("a buffer lies outside of the batch's {} bytes", body.len()))?;
        let expected = fixed_len(*role, (schema, layout), rows).ok_or("the size of a buffer overflows")?;
        if expected.is_some_and(|expected| expected != bounds.1 - bounds.0) {
            return Err(format!("expected {expected:?} bytes for {role:?}, found {}", bounds.1 - bounds.0));
        }
        slices.set(*role, body.slice(bounds.0..bounds.1));
    }
    slices.into_columns(schema, rows)
}

fn check_nodes(batch: &RecordBatch<'_>, plan: &Plan, rows: usize, body_len: i64, found: usize) -> Result<(), String> {
    if batch.compression().is_some() || usize::try_from(body_len) != Ok(found) {
        return Err("a batch is compressed, or its body is not as long as its frame says".into());
    }
    if usize::try_from(batch.length()) != Ok(rows) {
        return Err(format!("expected {rows} rows, found {}", batch.length()));
    }
    let nodes = batch.nodes().ok_or("a batch has no nodes")?;
    if nodes.len() != plan.nodes.len() {
        return Err(format!("expected {} nodes, found {}", plan.nodes.len(), nodes.len()));
    }
    for (role, node) in plan.nodes.iter().zip(nodes) {
        let expected = fixed_node_len(*role, rows).ok_or("the length of a node overflows")?;
        if node.null_count() != 0 || expected.is_some_and(|expected| usize::try_from(node.length()) != Ok(expected)) {
            return Err(format!("expected a node of {expected:?} without nulls, found {node:?}"));
        }
    }
    Ok(())
}

#[derive(Default)]
struct LeafSlices {
    offsets: Bytes,
    dims: Bytes,
    data: Bytes,
}

/// The buffers of a batch by what they hold.
#[derive(Default)]
struct Slices {
    keys: [Bytes; 2],
    checksums: Checksums,
    times: Option<Bytes>,
    leaves: Vec<LeafSlices>,
}

impl Slices {
    fn set(&mut self, role: Role, bytes: Bytes) {
        let [key_offsets, key_data] = &mut self.keys;
        let target = match role {
            Role::Validity => return,
            Role::KeyOffsets => Some(key_offsets),
            Role::KeyIntegers | Role::KeyData => Some(key_data),
            Role::RowCrc => Some(&mut self.checksums.rows),
            Role::LeafCrcs => Some(&mut self.checksums.leaves),
            Role::RowTimes => self.times.as_mut(),
            Role::LeafOffsets(leaf) => self.leaves.get_mut(leaf).map(|leaf| &mut leaf.offsets),
            Role::LeafDims(leaf) => self.leaves.get_mut(leaf).map(|leaf| &mut leaf.dims),
            Role::LeafData(leaf) => self.leaves.get_mut(leaf).map(|leaf| &mut leaf.data),
        };
        if let Some(target) = target {
            *target = bytes;
        }
    }

    fn into_columns(self, schema: &Arc<RowSchema>, rows: usize) -> Result<(Columns, Checksums), String> {
        let [offsets, data] = self.keys;
        let keys = match schema.key {
            KeyKind::U64 => KeyColumn::U64(data),
            KeyKind::Str | KeyKind::Bytes => KeyColumn::Variable { offsets, data },
        };
        let leaves = schema
            .leaves
            .iter()
            .zip(self.leaves)
            .map(|(kind, slices)| {
                Ok(match kind.storage().ok_or("the size of a row overflows")? {
                    Storage::Fixed { width } => LeafColumn::Fixed { width, data: slices.data },
                    Storage::Bits => LeafColumn::Bits(slices.data),
                    Storage::Variable { unit, rank } => LeafColumn::Variable {
                        offsets: slices.offsets,
                        unit,
                        data: slices.data,
                        dims: slices.dims,
                        rank,
                    },
                })
            })
            .collect::<Result<_, String>>()?;
        let columns = Columns { schema: Arc::clone(schema), rows, keys, times: self.times, leaves };
        Ok((columns, self.checksums))
    }
}
