//! Arrow IPC files and streams: record batches from the memory map, without a copy unless they are compressed.
//!
//! Every message is checked to lie within the file before it is decoded. A panic of the decoder on a damaged message is
//! caught and returned as an error.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once};

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::ipc::convert::try_fb_to_schema;
use arrow::ipc::reader::FileDecoder;
use arrow::ipc::{Block, Endianness, Message, MessageHeader, MetadataVersion, root_as_footer, root_as_message};

use super::input::{Format, InputFile};
use super::table::{Batches, Tables};
use crate::failure::Failure;

const MAGIC: &[u8] = b"ARROW1";
const CONTINUATION: [u8; 4] = [0xff; 4];
/// The largest size in bytes of a record batch after decompression.
const MOST_UNPACKED_BYTES: u64 = 8 << 30;

thread_local! {
    /// Whether panics of this thread are caught and returned as errors.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a decoder over bytes that may be damaged; a panic becomes an error.
pub(crate) fn guarded<T>(decode: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                usual(info);
            }
        }));
    });
    GUARDED.set(true);
    let result = catch_unwind(AssertUnwindSafe(decode));
    GUARDED.set(false);
    result.unwrap_or_else(|_| Err("it is damaged: it cannot be decoded".into()))
}

/// A message of the file.
#[derive(Debug, Clone, Copy)]
struct Part {
    offset: u64,
    metadata_len: usize,
    body_len: usize,
    is_dictionary: bool,
}

/// An Arrow IPC file or stream.
#[derive(Debug)]
pub(crate) struct ArrowFile {
    file: Arc<InputFile>,
    schema: SchemaRef,
    version: MetadataVersion,
    parts: Vec<Part>,
}

impl ArrowFile {
    /// Reads the schema and finds the batches.
    pub(crate) fn open(file: Arc<InputFile>) -> Result<Self, Failure> {
        let start = file.start(8)?;
        let is_file = start.starts_with(MAGIC);
        if !is_file && (start.starts_with(b"FEA1") || start.len() < 8) {
            return Err(if start.starts_with(b"FEA1") {
                file.refuse("it is a Feather file of version 1: write it as an Arrow IPC file (Feather version 2)")
            } else {
                file.not_a(Format::Arrow)
            });
        }
        let bytes = file.mapped()?;
        let found = guarded(|| if is_file { parts_of_file(&bytes) } else { parts_of_stream(&bytes) });
        let (schema, version, parts) = match found {
            Ok(found) => found,
            // A stream has no magic, so a file of any other format ends up here.
            Err(_) if !is_file && start.get(..4) != Some(&CONTINUATION) => return Err(file.not_a(Format::Arrow)),
            Err(why) => return Err(file.refuse(why)),
        };
        for part in &parts {
            let end =
                part.offset.checked_add(part.metadata_len as u64).and_then(|at| at.checked_add(part.body_len as u64));
            if end.is_none_or(|end| end > file.len_bytes) {
                return Err(file.refuse("it is damaged or truncated: a record batch extends beyond the end"));
            }
        }
        Ok(Self { file, schema, version, parts })
    }
}

impl Tables for ArrowFile {
    fn file(&self) -> &InputFile {
        &self.file
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn batches(&self, columns: &[usize]) -> Result<Batches<'_>, Failure> {
        // Columns come in the order of the schema.
        let decoder = FileDecoder::new(Arc::clone(&self.schema), self.version).with_projection(columns.to_vec());
        let map = Buffer::from(self.file.mapped()?);
        let mut state = (decoder, self.parts.iter());
        Ok(Box::new(std::iter::from_fn(move || {
            loop {
                let (decoder, parts) = &mut state;
                let part = parts.next()?;
                match self.decode(decoder, &map, *part) {
                    Ok(None) => {}
                    Ok(Some(batch)) => return Some(Ok(batch)),
                    Err(failure) => return Some(Err(failure)),
                }
            }
        })))
    }
}

impl ArrowFile {
    fn decode(&self, decoder: &mut FileDecoder, map: &Buffer, part: Part) -> Result<Option<RecordBatch>, Failure> {
        let len_bytes = part.metadata_len + part.body_len;
        self.file.read_ahead(part.offset, len_bytes)?;
        let decoded = guarded(|| {
            let bytes = map.slice_with_length(part.offset as usize, len_bytes);
            check_unpacked_len(&bytes, part.body_len)?;
            let block = Block::new(
                i64::try_from(part.offset).unwrap_or_default(),
                i32::try_from(part.metadata_len).unwrap_or_default(),
                i64::try_from(part.body_len).unwrap_or_default(),
            );
            let damaged = |error: arrow::error::ArrowError| format!("it is damaged: {error}");
            if part.is_dictionary {
                return decoder.read_dictionary(&block, &bytes).map(|()| None).map_err(damaged);
            }
            decoder.read_record_batch(&block, &bytes).map_err(damaged)
        });
        decoded.map_err(|why| self.file.refuse(format!("in the record batch at byte {}: {why}", part.offset)))
    }
}

type Found = (SchemaRef, MetadataVersion, Vec<Part>);

fn schema_of(schema: Option<arrow::ipc::Schema<'_>>) -> Result<SchemaRef, String> {
    let schema = schema.ok_or("it is damaged: it has no schema")?;
    if schema.endianness() != Endianness::Little {
        return Err("its elements are big-endian: write it on a little-endian machine".into());
    }
    try_fb_to_schema(schema).map(Arc::new).map_err(|error| format!("its schema cannot be read: {error}"))
}

fn parts_of_file(bytes: &[u8]) -> Result<Found, String> {
    let cut = || "it is truncated, since it does not end with ARROW1: copy it again".to_owned();
    let (rest, magic) = bytes.split_last_chunk::<6>().ok_or_else(cut)?;
    let (rest, len) = rest.split_last_chunk::<4>().ok_or_else(cut)?;
    if magic != MAGIC {
        return Err(cut());
    }
    let start = usize::try_from(i32::from_le_bytes(*len)).ok().and_then(|len| rest.len().checked_sub(len));
    let footer =
        start.and_then(|start| rest.get(start..)).ok_or("it is damaged: its footer is longer than the file")?;
    let footer =
        root_as_footer(footer).map_err(|error| format!("it is damaged: its footer cannot be read: {error}"))?;
    let schema = schema_of(footer.schema())?;
    let part = |block: &Block, is_dictionary| {
        let number =
            |number: i64| usize::try_from(number).map_err(|_| "it is damaged: a length is negative".to_owned());
        Ok::<_, String>(Part {
            offset: number(block.offset())? as u64,
            metadata_len: number(i64::from(block.metaDataLength()))?,
            body_len: number(block.bodyLength())?,
            is_dictionary,
        })
    };
    let dictionaries = footer.dictionaries().iter().flatten().map(|block| part(block, true)).collect::<Vec<_>>();
    let batches = footer.recordBatches().iter().flatten().map(|block| part(block, false)).collect::<Vec<_>>();
    let parts = dictionaries.into_iter().chain(batches).collect::<Result<_, _>>()?;
    Ok((schema, footer.version(), parts))
}

fn parts_of_stream(bytes: &[u8]) -> Result<Found, String> {
    let mut schema = None;
    let (mut parts, mut at) = (Vec::new(), 0_usize);
    while at < bytes.len() {
        let cut = || format!("it is truncated or damaged at byte {at}");
        let word = |at: usize| bytes.get(at..at + 4)?.as_chunks::<4>().0.first().copied();
        let (len, lead) = match word(at).ok_or_else(cut)? {
            CONTINUATION => (word(at + 4).ok_or_else(cut)?, 8),
            len => (len, 4),
        };
        let len = usize::try_from(i32::from_le_bytes(len)).map_err(|_| cut())?;
        if len == 0 {
            at += lead;
            break;
        }
        let metadata = bytes.get(at + lead..at + lead + len).ok_or_else(cut)?;
        let message = root_as_message(metadata).map_err(|error| format!("{}: {error}", cut()))?;
        let body_len = usize::try_from(message.bodyLength()).map_err(|_| cut())?;
        let metadata_len = lead + len;
        match message.header_type() {
            MessageHeader::Schema if schema.is_none() => {
                schema = Some((schema_of(message.header_as_schema())?, message.version()));
            }
            MessageHeader::DictionaryBatch | MessageHeader::RecordBatch if schema.is_some() => {
                let is_dictionary = message.header_type() == MessageHeader::DictionaryBatch;
                parts.push(Part { offset: at as u64, metadata_len, body_len, is_dictionary });
            }
            other => return Err(format!("{}: a message of type {other:?} is not expected here", cut())),
        }
        at = at
            .checked_add(metadata_len)
            .and_then(|at| at.checked_add(body_len))
            .filter(|at| *at <= bytes.len())
            .ok_or_else(cut)?;
    }
    let (schema, version) = schema.ok_or("it is not an Arrow stream: it has no schema")?;
    if at != bytes.len() {
        return Err(format!("{} bytes follow the end of the stream at byte {at}", bytes.len() - at));
    }
    Ok((schema, version, parts))
}

/// Checks the decompressed length that compressed buffers claim, since the decoder allocates it.
fn check_unpacked_len(bytes: &[u8], body_len: usize) -> Result<(), String> {
    let lead = if bytes.get(..4) == Some(&CONTINUATION) { 8 } else { 4 };
    let message: Message<'_> = root_as_message(bytes.get(lead..bytes.len() - body_len).unwrap_or_default())
        .map_err(|error| format!("it is damaged: {error}"))?;
    let batch = match message.header_type() {
        MessageHeader::DictionaryBatch => message.header_as_dictionary_batch().and_then(|batch| batch.data()),
        _ => message.header_as_record_batch(),
    };
    let Some(batch) = batch.filter(|batch| batch.compression().is_some()) else { return Ok(()) };
    let body = bytes.get(bytes.len() - body_len..).unwrap_or_default();
    let mut total = 0_u64;
    for buffer in batch.buffers().iter().flatten().filter(|buffer| buffer.length() > 0) {
        let prefix = usize::try_from(buffer.offset()).ok().and_then(|at| body.get(at..)?.first_chunk::<8>());
        let len = i64::from_le_bytes(*prefix.ok_or("it is damaged: a buffer extends beyond the end")?);
        // -1 means that the buffer is not compressed.
        total = total.saturating_add(u64::try_from(len).unwrap_or_default());
    }
    if total > MOST_UNPACKED_BYTES {
        return Err(format!("it would decompress to {total} bytes, more than {MOST_UNPACKED_BYTES}"));
    }
    Ok(())
}
