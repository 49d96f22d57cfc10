//! Reads a segment file from the front: the header, and the committed prefix of its batches.
//!
//! As in leveldb's log reader, a torn tail is the normal end of a file whose writer was killed, or whose machine lost
//! power; in the latter case it may have holes, and whole batches after them. A bad batch that is known to have been on
//! disk is damage.

use std::path::Path;
use std::sync::Arc;

use arrow_ipc::{MessageHeader, root_as_footer};

use super::batch::{Batch, parse_message};
use super::layout::{ARROW_MAGIC, FORMAT_VERSION, FRAME_LEN_BYTES, Frame, SEEDED_VERSION, Seal};
use crate::checksum::{crc32, segment_seed};
use crate::error::{Error, Result};
use crate::io::{LARGE_PAGE_BYTES, ReadFile};
use crate::key::KeyHasher;
use crate::names::SegmentId;
use crate::schema::{Header, METADATA_KEY, ROW_LAYOUT_VERSION, RowLayout, RowSchema};

/// Bytes of the magic with which the file starts; the schema message follows.
pub(crate) const HEADER_OFFSET: u64 = ARROW_MAGIC.len() as u64;
/// Most bytes of a schema message.
const MAX_SCHEMA_LEN_BYTES: u64 = 16 << 20;

/// The front of a segment file.
#[derive(Debug, Clone)]
pub(crate) struct Front {
    pub header: Header,
    pub schema: Arc<RowSchema>,
    pub seed: u32,
    /// The schema message's frame.
    pub frame: Frame,
}

impl Front {
    /// The structure of the rows, and which other columns there are.
    pub(crate) fn rows(&self) -> (&Arc<RowSchema>, RowLayout) {
        (&self.schema, self.header.layout())
    }
}

/// The bytes after the committed prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rest {
    /// Nothing.
    Nothing,
    /// Bytes that no frame commits.
    Torn { why: String },
    /// A batch that is damaged although it was on disk.
    Damaged { why: String },
}

/// The committed prefix of a segment.
#[derive(Debug, Clone)]
pub(crate) struct Prefix {
    pub frames: Vec<Frame>,
    /// Where the next message would start.
    pub end_offset: u64,
    /// Bytes of the file that were examined.
    pub len_bytes: u64,
    pub rest: Rest,
}

impl Prefix {
    /// Why it ends where it does.
    pub(crate) fn why(&self) -> String {
        match &self.rest {
            Rest::Nothing => "batches that were there are missing".into(),
            Rest::Torn { why } | Rest::Damaged { why } => why.clone(),
        }
    }
}

/// Bytes of prefix and metadata that a message at `offset` claims, if they lie in the file.
fn metadata_len(file: &dyn ReadFile, offset: u64, end: u64) -> Result<Option<u64>> {
    if offset.checked_add(8).is_none_or(|after| after > end) {
        return Ok(None);
    }
    let prefix = file.copy(offset, 8)?;
    let len = prefix.get(4..8).and_then(|len| len.try_into().ok()).map_or(-1, i32::from_le_bytes);
    let total = u64::try_from(len).ok().map(|len| len + 8);
    Ok(total.filter(|total| *total > 8 && offset + total <= end))
}

/// Reads the front of the file at `path`, which is segment `expected`.
///
/// # Errors
/// As [`read_any_front`]; [`Error::Corrupt`] if it is that of another segment.
pub(crate) fn read_front(path: &Path, file: &dyn ReadFile, expected: SegmentId) -> Result<Front> {
    let front = read_any_front(path, file)?;
    let id = front.header.id();
    if id != expected {
        return Err(Error::corrupt(path, 0, format!("the file is segment {id}, not {expected} as its name says")));
    }
    Ok(front)
}

/// Reads the front of the file at `path`, whichever segment it is.
///
/// # Errors
/// [`Error::Corrupt`] if it is damaged, [`Error::NewerFormat`] for a newer version.
pub(crate) fn read_any_front(path: &Path, file: &dyn ReadFile) -> Result<Front> {
    let corrupt = |what: &str| Error::corrupt(path, 0, what);
    let end = file.len_bytes()?;
    if end < HEADER_OFFSET || file.copy(0, ARROW_MAGIC.len())?.as_ref() != ARROW_MAGIC {
        return Err(corrupt("expected the start of an Arrow file, found other bytes"));
    }
    let metadata = metadata_len(file, HEADER_OFFSET, end)?
        .filter(|len| *len <= MAX_SCHEMA_LEN_BYTES)
        .ok_or_else(|| corrupt("expected a schema message, found other bytes"))?;
    let bytes = file.copy(HEADER_OFFSET, metadata as usize)?;
    let (message, _) = parse_message(&bytes).map_err(|what| corrupt(&what))?;
    if message.header_type() != MessageHeader::Schema {
        return Err(corrupt("expected a schema message, found another message"));
    }
    let frame_offset = HEADER_OFFSET + metadata;
    if frame_offset + FRAME_LEN_BYTES as u64 > end {
        return Err(corrupt("expected the schema's frame, found the end of the file"));
    }
    let frame = Frame::decode(&file.copy(frame_offset, FRAME_LEN_BYTES)?)
        .filter(|frame| {
            frame.offset == HEADER_OFFSET
                && u64::from(frame.metadata_len_bytes) == metadata
                && frame.rows == 0
                && frame.body_len_bytes == 0
        })
        .ok_or_else(|| corrupt("the schema's frame is damaged"))?;
    if crc32(&bytes) != frame.structure_crc {
        return Err(corrupt("the schema's checksum does not match its bytes"));
    }
    let json = message
        .header_as_schema()
        .and_then(|schema| schema.custom_metadata())
        .and_then(|items| items.iter().find(|item| item.key() == Some(METADATA_KEY)))
        .and_then(|item| item.value())
        .ok_or_else(|| corrupt("the schema has no tensorcask header"))?;
    let header = parse_header(path, json)?;
    let seed = segment_seed(header.store.as_bytes(), header.id());
    if seed != frame.seed {
        return Err(corrupt("the header and the schema's frame are of different segments"));
    }
    let schema = Arc::new(header.schema.clone());
    Ok(Front { header, schema, seed, frame })
}

/// The front from its copy in the Arrow footer: for a sealed segment whose own front is damaged. `seal` was checked,
/// and `footer` against it.
///
/// # Errors
/// [`Error::Corrupt`] if the footer has no header, or that of another segment; [`Error::NewerFormat`].
pub(crate) fn front_in_footer(path: &Path, footer: &[u8], seal: &Seal) -> Result<Front> {
    let corrupt = |what: String| Error::corrupt(path, seal.footer.offset, what);
    let parsed = root_as_footer(footer).map_err(|error| corrupt(format!("the Arrow footer is invalid: {error}")))?;
    let json = parsed
        .schema()
        .and_then(|schema| schema.custom_metadata())
        .and_then(|items| items.iter().find(|item| item.key() == Some(METADATA_KEY)))
        .and_then(|item| item.value())
        .ok_or_else(|| corrupt("the Arrow footer has no tensorcask header".into()))?;
    let header = parse_header(path, json)?;
    let seed = segment_seed(header.store.as_bytes(), header.id());
    let metadata_len_bytes = u32::try_from(seal.schema.len_bytes).ok();
    let (true, Some(metadata_len_bytes)) = (header.id() == seal.id() && seed == seal.seed, metadata_len_bytes) else {
        return Err(corrupt(format!("the Arrow footer is of segment {}, not {}", header.id(), seal.id())));
    };
    let frame = Frame {
        seed,
        offset: HEADER_OFFSET,
        metadata_len_bytes,
        structure_crc: seal.schema.crc,
        structure_len_bytes: seal.schema.len_bytes,
        ..Frame::default()
    };
    let schema = Arc::new(header.schema.clone());
    Ok(Front { header, schema, seed, frame })
}

fn parse_header(path: &Path, json: &str) -> Result<Header> {
    #[derive(serde::Deserialize)]
    struct Version {
        format: u32,
    }
    let corrupt = |what: String| Error::corrupt(path, HEADER_OFFSET, what);
    // A newer header may have another form, except for this field.
    let parsed = serde_json::from_str::<Header>(json);
    let format = match &parsed {
        Ok(header) => header.format,
        Err(_) => serde_json::from_str::<Version>(json).map_or(0, |version| version.format),
    };
    if format > FORMAT_VERSION {
        return Err(Error::NewerFormat { path: path.into(), found: format, supported: FORMAT_VERSION });
    }
    let header = parsed.map_err(|error| corrupt(format!("the header: {error}")))?;
    header.schema.check().map_err(corrupt)?;
    if KeyHasher::new(header.hash, 0).is_none() {
        return Err(corrupt(format!("hash {} is not known", header.hash)));
    }
    if header.hash_seed.is_some() != (format >= SEEDED_VERSION) {
        return Err(corrupt(format!("version {format} with hash seed {:?} is not possible", header.hash_seed)));
    }
    if header.row_times && format < ROW_LAYOUT_VERSION {
        return Err(corrupt(format!("rows with commit timestamps are not possible in version {format}")));
    }
    Ok(header)
}

/// Walks the batches of a segment from `offset`, where the next message would start. `first_row` rows precede it.
/// O(batches), and O(structure bytes) for their checksums; values are not read.
///
/// # Errors
/// Only if the file cannot be read.
pub(crate) fn walk(file: &dyn ReadFile, seed: u32, mut offset: u64, mut first_row: u64) -> Result<Prefix> {
    let end = file.len_bytes()?;
    let mut frames = Vec::new();
    loop {
        match next_frame(file, seed, offset, first_row, end)? {
            Ok(frame) => {
                offset = frame.end_offset();
                first_row += u64::from(frame.rows);
                frames.push(frame);
            }
            Err(why) => {
                let rest = if offset >= end { Rest::Nothing } else { Rest::Torn { why } };
                return Ok(Prefix { frames, end_offset: offset, len_bytes: end, rest });
            }
        }
    }
}

/// The frame of the batch at `offset`, or why there is none.
fn next_frame(file: &dyn ReadFile, seed: u32, offset: u64, first_row: u64, end: u64) -> Result<Result<Frame, String>> {
    let Some(metadata) = metadata_len(file, offset, end)? else {
        return Ok(Err("no whole message".into()));
    };
    let bytes = file.copy(offset, metadata as usize)?;
    let body = match parse_message(&bytes) {
        Ok((message, _)) => u64::try_from(message.bodyLength()).unwrap_or(u64::MAX),
        Err(why) => return Ok(Err(why)),
    };
    let frame_offset = (offset + metadata).checked_add(body);
    let Some(frame_offset) =
        frame_offset.filter(|at| at.checked_add(FRAME_LEN_BYTES as u64).is_some_and(|at| at <= end))
    else {
        return Ok(Err("a batch without its commit frame".into()));
    };
    let Some(frame) = Frame::decode(&file.copy(frame_offset, FRAME_LEN_BYTES)?) else {
        return Ok(Err("a commit frame that is damaged".into()));
    };
    let belongs = frame.seed == seed
        && frame.offset == offset
        && frame.frame_offset() == frame_offset
        && frame.first_row == first_row
        && frame.rows > 0;
    if !belongs {
        return Ok(Err("a commit frame of another batch".into()));
    }
    let structure = file.copy(offset, frame.structure_len_bytes as usize)?;
    if crc32(&structure) != frame.structure_crc {
        return Ok(Err("keys and offsets whose checksum does not match".into()));
    }
    Ok(Ok(frame))
}

/// The committed prefix of a whole active segment after a crash. Walks the segment, searches for frames after its end,
/// and checks row by row the batches that are not known to have been on disk: a hole that power loss left in the values
/// then cuts the tail instead of being served. `synced`: how many bytes were on disk, if known.
///
/// # Errors
/// Only if the file cannot be read.
pub(crate) fn recover(path: &Arc<Path>, file: &dyn ReadFile, front: &Front, synced: Option<u64>) -> Result<Prefix> {
    let start = front.frame.end_offset();
    let mut prefix = walk(file, front.seed, start, 0)?;
    let timestamp = prefix.frames.last().map_or(0, |frame| frame.timestamp);
    if lost(file, front.seed, &prefix, timestamp, synced)?.is_some() {
        prefix.rest = Rest::Damaged { why: prefix.why() };
        return Ok(prefix);
    }
    let durable = prefix.frames.iter().map(|frame| frame.durable_timestamp).max().unwrap_or(0);
    let unsure =
        prefix.frames.partition_point(|frame| frame.timestamp <= durable || Some(frame.end_offset()) <= synced);
    for number in unsure..prefix.frames.len() {
        let Some(frame) = prefix.frames.get(number).copied() else { break };
        let message = file.bytes(frame.offset, frame.message_len_bytes() as usize)?;
        let whole = Batch::parse(path, front.rows(), frame, &message, false).is_ok_and(|b| b.damaged_rows().is_empty());
        if !whole {
            prefix.frames.truncate(number);
            prefix.end_offset = frame.offset;
            prefix.rest = Rest::Torn { why: "values that never reached the disk".into() };
            break;
        }
    }
    Ok(prefix)
}

/// The frames after `prefix`, whose last batch has `timestamp`, in order, if what follows it is damage; `None` if it is
/// a torn tail. O(bytes after the prefix).
///
/// It is damage if something that was on disk is missing, according to a sync record or a later frame of the segment.
/// Without a sync log, a batch that a whole one follows counts as synced.
fn lost(
    file: &dyn ReadFile,
    seed: u32,
    prefix: &Prefix,
    timestamp: u64,
    synced: Option<u64>,
) -> Result<Option<Vec<Frame>>> {
    let mut found = salvage(file, seed, prefix.end_offset, prefix.len_bytes)?;
    let mut end = prefix.end_offset;
    found.retain(|frame| {
        let follows = frame.offset >= end;
        end = if follows { frame.end_offset() } else { end };
        follows
    });
    let damage = match synced {
        Some(synced) => synced > prefix.end_offset || found.iter().any(|frame| frame.durable_timestamp > timestamp),
        None => !found.is_empty(),
    };
    Ok(damage.then_some(found))
}

/// Bytes of the torn tail after `prefix`, without the zeros that fill a page ([`AppendFile::fill_pages`]).
///
/// # Errors
/// Only if the file cannot be read.
///
/// [`AppendFile::fill_pages`]: crate::io::AppendFile::fill_pages
pub(crate) fn torn_bytes(file: &dyn ReadFile, prefix: &Prefix) -> Result<u64> {
    let len_bytes = prefix.len_bytes - prefix.end_offset;
    if len_bytes >= LARGE_PAGE_BYTES {
        return Ok(len_bytes);
    }
    let tail = file.copy(prefix.end_offset, len_bytes as usize)?;
    Ok(tail.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1))
}

/// The bytes after the point at which a walk of another writer's segment stopped.
#[derive(Debug)]
pub(crate) enum Ahead {
    /// A torn tail, or a batch that is still being written.
    Nothing,
    /// The batch that was incomplete is complete now.
    More,
    /// Damage, with these frames after it.
    Damage(Vec<Frame>),
}

/// Examines what follows `prefix`, which ended before row `rows` with a batch of `timestamp`, while a writer may be
/// appending. `synced` as for [`recover`]. O(bytes after the end).
///
/// # Errors
/// Only if the file cannot be read.
pub(crate) fn look_ahead(
    file: &dyn ReadFile,
    seed: u32,
    prefix: &Prefix,
    (rows, timestamp): (u64, u64),
    synced: Option<u64>,
) -> Result<Ahead> {
    let Some(frames) = lost(file, seed, prefix, timestamp, synced)? else { return Ok(Ahead::Nothing) };
    // Batches are appended and synced one after another. Since a later one was seen, this one is complete, or it is
    // damaged.
    let again = next_frame(file, seed, prefix.end_offset, rows, file.len_bytes()?)?;
    Ok(if again.is_ok() { Ahead::More } else { Ahead::Damage(frames) })
}

/// All frames of this segment between `from` and `end` whose batches have an intact structure: for the remains of a
/// damaged file. O(bytes).
///
/// # Errors
/// Only if the file cannot be read.
pub(crate) fn salvage(file: &dyn ReadFile, seed: u32, from: u64, end: u64) -> Result<Vec<Frame>> {
    let mut whole = Vec::new();
    for frame in frames_in_place(file, seed, from, end)? {
        if crc32(&file.copy(frame.offset, frame.structure_len_bytes as usize)?) == frame.structure_crc {
            whole.push(frame);
        }
    }
    Ok(whole)
}

/// The number of rows of this segment, according to the frames between `from` and `end`, whose batches may be damaged;
/// `None` if there is no frame. O(bytes).
///
/// # Errors
/// Only if the file cannot be read.
pub(crate) fn rows_told(file: &dyn ReadFile, seed: u32, from: u64, end: u64) -> Result<Option<u64>> {
    let frames = frames_in_place(file, seed, from, end)?;
    Ok(frames.iter().map(|frame| frame.first_row.saturating_add(u64::from(frame.rows))).max())
}

/// All frames of batches of this segment between `from` and `end`, whether the batches are damaged or not. O(bytes).
///
/// # Errors
/// Only if the file cannot be read.
pub(crate) fn frames_in_place(file: &dyn ReadFile, seed: u32, from: u64, end: u64) -> Result<Vec<Frame>> {
    let frames = find_frames(file, from, end)?.into_iter();
    Ok(frames.filter(|frame| frame.seed == seed && frame.rows > 0).collect())
}

/// All frames of any segment between `from` and `end` that directly follow their messages. O(bytes).
///
/// # Errors
/// Only if the file cannot be read.
pub(crate) fn find_frames(file: &dyn ReadFile, from: u64, end: u64) -> Result<Vec<Frame>> {
    const WINDOW: u64 = 8 << 20;
    let mut found = Vec::new();
    // Frames are aligned to eight bytes.
    let mut at = from.next_multiple_of(8);
    while at + FRAME_LEN_BYTES as u64 <= end {
        let len = (end - at).min(WINDOW);
        // Copies, since nobody has committed these bytes: the writer or its successor may cut them off meanwhile.
        let window = file.copy(at, len as usize)?;
        for (position, chunk) in window.chunks_exact(8).enumerate() {
            let start = position * 8;
            if chunk != Frame::magic() {
                continue;
            }
            let frame = window.get(start..start + FRAME_LEN_BYTES).and_then(Frame::decode);
            found.extend(frame.filter(|frame| frame.frame_offset() == at + start as u64));
        }
        if len < WINDOW {
            break;
        }
        // Windows overlap by a frame.
        at += WINDOW - (FRAME_LEN_BYTES as u64).next_multiple_of(8);
    }
    found.dedup_by_key(|frame| frame.offset);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_nested_to_any_depth_is_damage_and_takes_no_stack() {
        for (open, close) in [("{\"list\":[", "]}"), ("{\"map\":[[\"a\",", "]]}"), ("[", "]"), ("{\"a\":", "}")] {
            let tree = open.repeat(100_000) + "\"null\"" + &close.repeat(100_000);
            for member in ["tree", "other"] {
                let json = format!("{{\"format\":2,\"{member}\":{tree}}}");
                assert!(parse_header(Path::new("x"), &json).unwrap_err().is_corrupt());
            }
        }
    }
}
