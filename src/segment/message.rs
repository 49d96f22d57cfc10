//! Arrow IPC messages: the schema, record batches, and the footer, written with arrow-rs's flatbuffer types.
//!
//! Bodies are laid out here and not by `IpcDataGenerator`, for three reasons: values start on a page boundary, all
//! other buffers come first (so that one checksum covers them), and values go from the caller's copy to the file in
//! one vectored write.

use std::borrow::Cow;

use arrow_ipc::convert::IpcSchemaEncoder;
use arrow_ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteOptions};
use arrow_ipc::{
    Block, Buffer, FieldNode, FooterBuilder, MessageBuilder, MessageHeader, MetadataVersion, RecordBatchBuilder,
};
use arrow_schema::Schema;
use bytes::Bytes;
use flatbuffers::FlatBufferBuilder;

use super::columns::{BatchPart, KeyColumn, LeafBytes, LeafColumn, offset_at};
use super::layout::{CONTINUATION, Frame};
use super::plan::{NodeRole, Plan, Role};
use crate::checksum::crc32;
use crate::error::{Error, Result};
use crate::schema::{RowLayout, RowSchema, Storage};

/// Buffers start on multiples of this, the most that arrow-rs asks for.
const ALIGNMENT: usize = 64;
const ZEROS: &[u8] = &[0; ALIGNMENT];
/// Values start on a page, so that a row touches as few pages as possible.
const PAGE: usize = 4096;
/// Smallest size of values that start on a page: below it, padding would cost more than it gains.
const PAGE_ALIGN_FROM: usize = 8 * PAGE;

/// Wraps a flatbuffer as an encapsulated message's metadata that ends on a multiple of [`ALIGNMENT`] in the file.
fn encapsulate(flatbuffer: &[u8], offset: u64) -> Result<Vec<u8>> {
    let unpadded = offset + 8 + flatbuffer.len() as u64;
    let padded = flatbuffer.len() as u64 + (unpadded.next_multiple_of(ALIGNMENT as u64) - unpadded);
    let padded_i32 = i32::try_from(padded).map_err(|_| too_large("the metadata of a message", padded))?;
    let mut message = Vec::with_capacity(padded as usize + 8);
    message.extend_from_slice(&CONTINUATION);
    message.extend_from_slice(&padded_i32.to_le_bytes());
    message.extend_from_slice(flatbuffer);
    message.resize(padded as usize + 8, 0);
    Ok(message)
}

fn too_large(what: &str, found: u64) -> Error {
    Error::TooLarge { what: what.into(), found, limit: i32::MAX as u64 }
}

/// The schema message that starts at `offset` of the file.
pub(crate) fn schema_message(schema: &Schema, offset: u64) -> Result<Vec<u8>> {
    let options = IpcWriteOptions::try_new(ALIGNMENT, false, MetadataVersion::V5)
        .map_err(|error| Error::invalid(format!("arrow schema: {error}")))?;
    let data = IpcDataGenerator::default().schema_to_bytes_with_dictionary_tracker(
        schema,
        &mut DictionaryTracker::new(false),
        &options,
    );
    encapsulate(&data.ipc_message, offset)
}

/// The Arrow footer: the schema again, and where the batches lie.
pub(crate) fn footer(schema: &Schema, frames: &[Frame]) -> Result<Vec<u8>> {
    let blocks = frames
        .iter()
        .map(|frame| {
            let number = |value: u64| i64::try_from(value).map_err(|_| too_large("an offset", value));
            let metadata = i32::try_from(frame.metadata_len_bytes)
                .map_err(|_| too_large("metadata", u64::from(frame.metadata_len_bytes)))?;
            Ok(Block::new(number(frame.offset)?, metadata, number(frame.body_len_bytes)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut builder = FlatBufferBuilder::new();
    let schema = IpcSchemaEncoder::new().schema_to_fb_offset(&mut builder, schema);
    let dictionaries = builder.create_vector::<Block>(&[]);
    let blocks = builder.create_vector(&blocks);
    let mut footer = FooterBuilder::new(&mut builder);
    footer.add_version(MetadataVersion::V5);
    footer.add_schema(schema);
    footer.add_dictionaries(dictionaries);
    footer.add_recordBatches(blocks);
    let root = footer.finish();
    builder.finish(root, None);
    Ok(builder.finished_data().to_vec())
}

fn batch_flatbuffer(rows: usize, nodes: &[FieldNode], buffers: &[Buffer], body_len: usize) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let nodes = builder.create_vector(nodes);
    let buffers = builder.create_vector(buffers);
    let mut batch = RecordBatchBuilder::new(&mut builder);
    batch.add_length(rows as i64);
    batch.add_nodes(nodes);
    batch.add_buffers(buffers);
    let batch = batch.finish().as_union_value();
    let mut message = MessageBuilder::new(&mut builder);
    message.add_version(MetadataVersion::V5);
    message.add_header_type(MessageHeader::RecordBatch);
    message.add_header(batch);
    message.add_bodyLength(body_len as i64);
    let root = message.finish();
    builder.finish(root, None);
    builder.finished_data().to_vec()
}

/// A batch ready to be written: `head`, then `values`, then its frame.
#[derive(Debug)]
pub(crate) struct EncodedBatch<'a> {
    /// Prefix, metadata, structure buffers and the padding before the values.
    pub head: Vec<u8>,
    /// The values and the padding between them.
    pub values: Vec<Cow<'a, [u8]>>,
    /// The commit frame; the caller sets the timestamps.
    pub frame: Frame,
}

/// Lays out the rows of `parts` (of one structure) as a record batch message that starts at `offset` of the file.
///
/// # Errors
/// [`Error::TooLarge`] if a column passes Arrow's 32-bit offsets, [`Error::Invalid`] if the parts are inconsistent.
pub(crate) fn encode_batch<'a>(
    (schema, layout): (&RowSchema, RowLayout),
    parts: &[BatchPart<'a>],
    seed: u32,
    offset: u64,
) -> Result<EncodedBatch<'a>> {
    let plan = Plan::new(schema, layout);
    let rows: usize = parts.iter().map(|part| part.columns.rows).sum();
    let rows_u32 = u32::try_from(rows).map_err(|_| too_large("the rows of a batch", rows as u64))?;
    if parts.iter().any(|part| part.columns.times.is_some() != layout.has_times) {
        return Err(Error::internal("rows with and without commit timestamps of their own are in one segment"));
    }
    let mut checksums = checksums(parts, layout, seed).ok_or_else(inconsistent)?;
    let mut structures = Vec::new();
    let mut values = Vec::new();
    for &role in &plan.buffers {
        if role.is_value() {
            let pieces = value_pieces(role, parts, rows)?;
            values.push(pieces);
        } else {
            structures.push(structure_buffer(role, parts, &mut checksums, rows)?);
        }
    }
    let nodes: Vec<FieldNode> =
        plan.nodes.iter().map(|node| FieldNode::new(node_len(*node, rows, parts) as i64, 0)).collect();

    // The flatbuffer's size does not depend on the numbers in it: a draft tells where the body starts.
    let draft = batch_flatbuffer(rows, &nodes, &vec![Buffer::new(1, 1); plan.buffers.len()], 1);
    let metadata_len = encapsulate(&draft, offset)?.len();
    let body_start = offset as usize + metadata_len;
    let placed = place(&plan, &structures, values, body_start)?;
    let mut head = encapsulate(&batch_flatbuffer(rows, &nodes, &placed.buffers, placed.body_len), offset)?;
    if head.len() != metadata_len {
        return Err(Error::invalid("the size of a record batch's metadata depends on its numbers"));
    }
    for (structure, start) in structures.iter().zip(&placed.structure_starts) {
        head.resize(metadata_len + start, 0);
        head.extend_from_slice(structure);
    }
    let frame = Frame {
        seed,
        rows: rows_u32,
        offset,
        metadata_len_bytes: metadata_len as u32,
        structure_crc: crc32(&head),
        structure_len_bytes: head.len() as u64,
        body_len_bytes: placed.body_len as u64,
        ..Frame::default()
    };
    head.resize(metadata_len + placed.values_start, 0);
    Ok(EncodedBatch { head, values: placed.pieces, frame })
}

struct Placed<'a> {
    buffers: Vec<Buffer>,
    structure_starts: Vec<usize>,
    values_start: usize,
    pieces: Vec<Cow<'a, [u8]>>,
    body_len: usize,
}

/// Gives every buffer its place in the body: structure first, values from a page boundary of the file on.
fn place<'a>(
    plan: &Plan,
    structures: &[Vec<u8>],
    values: Vec<Vec<Cow<'a, [u8]>>>,
    body_start: usize,
) -> Result<Placed<'a>> {
    let mut end = 0;
    let mut structure_places = Vec::with_capacity(structures.len());
    for structure in structures {
        structure_places.push((end, structure.len()));
        end = (end + structure.len()).next_multiple_of(ALIGNMENT);
    }
    let values_len: usize = values.iter().flatten().map(|piece| piece.len()).sum();
    let page = if values_len >= PAGE_ALIGN_FROM { PAGE } else { ALIGNMENT };
    let values_start = (body_start + end).next_multiple_of(page) - body_start;
    let mut value_places = Vec::with_capacity(values.len());
    let mut pieces = Vec::new();
    end = values_start;
    for value in values {
        let len: usize = value.iter().map(|piece| piece.len()).sum();
        value_places.push((end, len));
        let padded = (end + len).next_multiple_of(ALIGNMENT);
        pieces.extend(value);
        pieces.push(Cow::Borrowed(ZEROS.get(..padded - end - len).unwrap_or(&[])));
        end = padded;
    }
    let structure_starts = structure_places.iter().map(|(start, _)| *start).collect();
    let (mut structure, mut value) = (structure_places.into_iter(), value_places.into_iter());
    let buffers = plan.buffers.iter().map(|role| {
        let (start, len) = if role.is_value() { value.next() } else { structure.next() }?;
        Some(Buffer::new(start as i64, len as i64))
    });
    let buffers = buffers.collect::<Option<Vec<_>>>().ok_or_else(|| Error::invalid("a batch lacks a buffer"))?;
    Ok(Placed { buffers, structure_starts, values_start, pieces, body_len: end })
}

fn node_len(node: NodeRole, rows: usize, parts: &[BatchPart<'_>]) -> usize {
    match node {
        NodeRole::Rows => rows,
        NodeRole::Times(elements) => rows * elements,
        NodeRole::Elements(leaf) => parts
            .iter()
            .map(|part| match part.columns.leaves.get(leaf) {
                Some(LeafColumn::Variable { data, unit, .. }) => data.len() / unit,
                _ => 0,
            })
            .sum(),
    }
}

fn inconsistent() -> Error {
    Error::invalid("rows of different structures were put in one batch")
}

/// Joins `i32` offsets; those of each part continue from the last.
fn join_offsets<'a>(parts: impl Iterator<Item = Option<(&'a Bytes, usize)>>, rows: usize) -> Result<Vec<u8>> {
    let mut joined = Vec::with_capacity((rows + 1) * 4);
    joined.extend_from_slice(&0_i32.to_le_bytes());
    let mut base = 0_usize;
    for part in parts {
        let (offsets, rows) = part.ok_or_else(inconsistent)?;
        for row in 1..=rows {
            let offset = base + offset_at(offsets, row).ok_or_else(inconsistent)?;
            let offset = i32::try_from(offset).map_err(|_| too_large("a column of one batch", offset as u64))?;
            joined.extend_from_slice(&offset.to_le_bytes());
        }
        base += offset_at(offsets, rows).ok_or_else(inconsistent)?;
    }
    Ok(joined)
}

/// The checksums of all rows, and of all leaves that have their own, row after row.
struct Checksums {
    rows: Vec<u8>,
    leaves: Vec<u8>,
}

/// `None` if the columns are inconsistent.
fn checksums(parts: &[BatchPart<'_>], layout: RowLayout, seed: u32) -> Option<Checksums> {
    let rows: usize = parts.iter().map(|part| part.columns.rows).sum();
    let mut all =
        Checksums { rows: Vec::with_capacity(rows * 4), leaves: Vec::with_capacity(rows * layout.leaf_crcs * 4) };
    for part in parts {
        let before = all.leaves.len();
        if layout.leaf_crcs > 0 {
            part.leaf_crcs(seed, &mut all.leaves)?;
        }
        let leaf_crcs = all.leaves.get(before..).filter(|_| layout.leaf_crcs > 0);
        part.row_crcs(seed, leaf_crcs, &mut all.rows)?;
    }
    Some(all)
}

fn structure_buffer(role: Role, parts: &[BatchPart<'_>], checksums: &mut Checksums, rows: usize) -> Result<Vec<u8>> {
    let mut buffer = Vec::new();
    match role {
        Role::Validity | Role::LeafData(_) => {}
        Role::KeyOffsets => {
            let offsets = parts.iter().map(|part| match &part.columns.keys {
                KeyColumn::Variable { offsets, .. } => Some((offsets, part.columns.rows)),
                KeyColumn::U64(_) => None,
            });
            return join_offsets(offsets, rows);
        }
        Role::LeafOffsets(leaf) => {
            let offsets = parts.iter().map(|part| match part.columns.leaves.get(leaf) {
                Some(LeafColumn::Variable { offsets, .. }) => Some((offsets, part.columns.rows)),
                _ => None,
            });
            return join_offsets(offsets, rows);
        }
        Role::KeyIntegers | Role::KeyData => {
            for part in parts {
                let (KeyColumn::U64(data) | KeyColumn::Variable { data, .. }) = &part.columns.keys;
                buffer.extend_from_slice(data);
            }
        }
        Role::RowCrc => buffer = std::mem::take(&mut checksums.rows),
        Role::LeafCrcs => buffer = std::mem::take(&mut checksums.leaves),
        Role::RowTimes => {
            parts
                .iter()
                .filter_map(|part| part.columns.times.as_ref())
                .for_each(|times| buffer.extend_from_slice(times));
        }
        Role::LeafDims(leaf) => {
            for part in parts {
                match part.columns.leaves.get(leaf) {
                    Some(LeafColumn::Variable { dims, .. }) => buffer.extend_from_slice(dims),
                    _ => return Err(inconsistent()),
                }
            }
        }
    }
    Ok(buffer)
}

/// The bytes of a leaf in all parts, zero-copy; bits of several parts have to be packed again.
fn value_pieces<'a>(role: Role, parts: &[BatchPart<'a>], rows: usize) -> Result<Vec<Cow<'a, [u8]>>> {
    let Role::LeafData(leaf) = role else { return Ok(Vec::new()) };
    let first = parts.first().and_then(|part| part.columns.leaves.get(leaf));
    if let (Some(LeafColumn::Bits(_)), true) = (first, parts.len() > 1) {
        let mut bits = vec![0_u8; rows.div_ceil(8)];
        let flags = parts.iter().flat_map(|part| (0..part.columns.rows).map(|row| part.columns.leaf(leaf, row)));
        for (position, flag) in flags.enumerate() {
            if let (Some(LeafBytes::Bit(flag)), Some(byte)) = (flag, bits.get_mut(position / 8)) {
                *byte |= u8::from(flag) << (position % 8);
            }
        }
        return Ok(vec![bits.into()]);
    }
    parts.iter().map(|part| part.data(leaf).map(Cow::Borrowed).ok_or_else(inconsistent)).collect()
}

/// The bytes that a buffer of `role` must have in a batch of `rows`, where that does not depend on the data.
pub(crate) fn fixed_len(role: Role, (schema, layout): (&RowSchema, RowLayout), rows: usize) -> Option<Option<usize>> {
    let leaf = |leaf: usize| schema.leaves.get(leaf);
    Some(match role {
        Role::Validity => Some(0),
        Role::KeyIntegers | Role::RowTimes => Some(rows.checked_mul(8)?),
        Role::RowCrc => Some(rows.checked_mul(4)?),
        Role::LeafCrcs => Some(rows.checked_mul(layout.leaf_crcs)?.checked_mul(4)?),
        Role::KeyOffsets | Role::LeafOffsets(_) => Some(rows.checked_add(1)?.checked_mul(4)?),
        Role::KeyData => None,
        Role::LeafDims(number) => match leaf(number)?.storage()? {
            Storage::Variable { rank, .. } => Some(rows.checked_mul(rank)?.checked_mul(4)?),
            _ => return None,
        },
        Role::LeafData(number) => match leaf(number)?.storage()? {
            Storage::Fixed { width } => Some(rows.checked_mul(width)?),
            Storage::Bits => Some(rows.div_ceil(8)),
            Storage::Variable { .. } => None,
        },
    })
}

/// The length that a node must have, where that does not depend on the data.
pub(crate) fn fixed_node_len(node: NodeRole, rows: usize) -> Option<Option<usize>> {
    Some(match node {
        NodeRole::Rows => Some(rows),
        NodeRole::Times(elements) => Some(rows.checked_mul(elements)?),
        NodeRole::Elements(_) => None,
    })
}
