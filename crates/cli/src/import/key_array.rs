//! Arrays of keys: integers or strings in a `.npy` file or in an array of a `.npz` file.

use std::sync::Arc;

use tensorcask::{Dtype, Key, KeyKind};

use super::array::Array;
use super::input::{Format, InputFile};
use super::npy::{Elements, Header};
use crate::failure::Failure;

/// The number of elements that are checked at a time.
const BLOCK: usize = 8192;

/// An array of one dimension whose elements are keys.
#[derive(Debug)]
pub(crate) struct KeyArray {
    /// The elements; each string is a row of bytes.
    pub array: Array,
    /// The kind of the keys.
    pub kind: KeyKind,
    elements: Elements,
}

impl KeyArray {
    /// The keys in a `.npy` file, of `kind` if it is given.
    pub(crate) fn open(file: &Arc<InputFile>, kind: Option<KeyKind>) -> Result<Self, Failure> {
        let header = super::npy::read_header(file, Format::Npy, 0, file.len_bytes, "")?;
        Self::new(file, header, kind, String::new())
    }

    /// The keys in the array that `header` describes; `name` is its name in messages.
    pub(crate) fn new(
        file: &Arc<InputFile>,
        header: Header,
        kind: Option<KeyKind>,
        name: String,
    ) -> Result<Self, Failure> {
        let refuse = |what: String| Err(file.refuse(format!("{what}{name}")));
        let &[rows] = header.shape.as_slice() else {
            return refuse(format!("keys must be an array of one dimension, but its shape is {:?}", header.shape));
        };
        let natural = match header.elements {
            Elements::Numbers { dtype, .. } if is_integer(dtype) => KeyKind::U64,
            Elements::Text { .. } => KeyKind::Str,
            Elements::Bytes { .. } if kind == Some(KeyKind::Bytes) => KeyKind::Bytes,
            Elements::Bytes { .. } => KeyKind::Str,
            _ => {
                return refuse(format!(
                    "keys must be integers or strings, but its elements are of type {:?}",
                    header.descr
                ));
            }
        };
        let kind = kind.unwrap_or(natural);
        if kind != natural && kind != KeyKind::Str && (kind, natural) != (KeyKind::U64, KeyKind::Str) {
            return refuse(format!(
                "its elements are {} keys, to which --key-kind {} does not apply",
                natural.name(),
                kind.name()
            ));
        }
        let (dtype, big_endian, row) = match header.elements {
            Elements::Numbers { dtype, big_endian } => (dtype, big_endian, None),
            _ => (Dtype::U8, false, Some(header.size())),
        };
        let shape = std::iter::once(rows).chain(row).collect();
        // With one dimension, C and Fortran order are the same.
        let array =
            Array { name, dtype, shape, fortran: false, big_endian, file: Arc::clone(file), offset: header.offset };
        Ok(Self { array, kind, elements: header.elements })
    }

    /// Reads all keys; returns their number.
    pub(crate) fn check(&self) -> Result<u64, Failure> {
        let mut at = 0;
        while at < self.array.rows() {
            let now = BLOCK.min(self.array.rows() - at);
            self.read(at, now)?;
            at += now;
        }
        Ok(at as u64)
    }

    /// Reads `count` keys from `first` on.
    pub(crate) fn read(&self, first: usize, count: usize) -> Result<Vec<Key>, Failure> {
        let bytes = self.array.read(first, count)?;
        let width = self.array.row_len_bytes();
        let cells = (0..count).map(|at| bytes.get(at * width..(at + 1) * width).unwrap_or_default());
        let keys = cells.enumerate().map(|(at, cell)| {
            let key = self.key(cell).and_then(|key| crate::key::check_len(&key).map(|()| key));
            key.map_err(|why| self.array.file.refuse(format!("element {}{}: {why}", first + at, self.array.name)))
        });
        keys.collect()
    }

    fn key(&self, cell: &[u8]) -> Result<Key, String> {
        let text = match self.elements {
            Elements::Text { big_endian, .. } => decode_ucs4(cell, big_endian)?,
            Elements::Bytes { .. } => {
                // The zeros at the end are numpy's padding.
                let end = cell.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                let bytes = cell.get(..end).unwrap_or_default();
                if self.kind == KeyKind::Bytes {
                    return Ok(Key::Bytes(bytes.to_vec()));
                }
                let text = std::str::from_utf8(bytes);
                text.map_err(|_| "its bytes are not UTF-8: import them with --key-kind bytes".to_owned())?.to_owned()
            }
            _ => {
                let number = integer(self.array.dtype, cell);
                let Ok(number) = u64::try_from(number) else {
                    return Err(format!("{number} cannot be a key: keys are unsigned integers"));
                };
                let textual = self.kind == KeyKind::Str;
                return Ok(if textual { Key::Str(number.to_string()) } else { Key::U64(number) });
            }
        };
        crate::key::parse(&text, self.kind)
            .map_err(|why| format!("{text:?} cannot be a key: {}", why.replacen("its keys", "keys", 1)))
    }
}

fn is_integer(dtype: Dtype) -> bool {
    use Dtype::{I8, I16, I32, I64, U8, U16, U32, U64};
    matches!(dtype, U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64)
}

/// The integer in little-endian `bytes`.
fn integer(dtype: Dtype, bytes: &[u8]) -> i128 {
    let signed = dtype.name().starts_with('I');
    let negative = signed && bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut wide = [if negative { 0xff } else { 0 }; 16];
    wide.iter_mut().zip(bytes).for_each(|(wide, byte)| *wide = *byte);
    i128::from_le_bytes(wide)
}

/// Decodes UCS-4 text that is padded with zeros.
fn decode_ucs4(cell: &[u8], big_endian: bool) -> Result<String, String> {
    let codes = cell.as_chunks::<4>().0.iter().map(|code| match big_endian {
        true => u32::from_be_bytes(*code),
        false => u32::from_le_bytes(*code),
    });
    let codes: Vec<u32> = codes.collect();
    let end = codes.iter().rposition(|code| *code != 0).map_or(0, |last| last + 1);
    let chars = codes.iter().take(end).map(|code| {
        char::from_u32(*code).ok_or_else(|| format!("it has the code point {code:#x}, which is not a character"))
    });
    chars.collect()
}
