//! `.safetensors` files: tensors by name, parsed strictly.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use tensorcask::{Dtype, Key, KeyKind, MAX_RANK};

use super::array::Array;
use super::input::{Format, InputFile, shown};
use crate::failure::Failure;
use crate::key::{check_len, parse};

/// The longest header that the format allows.
const MOST_HEADER_BYTES: u64 = 100_000_000;

/// A tensor in the file.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// The offset of its bytes in the file.
    pub offset: u64,
    /// Its size in bytes.
    pub len_bytes: usize,
}

/// The tensors of a file.
#[derive(Debug)]
pub(crate) struct TensorFile {
    /// The file.
    pub file: Arc<InputFile>,
    /// The tensors, in the order of their bytes.
    pub tensors: Vec<Named>,
    /// The `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// The kind of keys that the names are.
    pub kind: KeyKind,
}

impl TensorFile {
    /// Reads and checks the header. The names of tensors are keys of `kind`.
    pub(crate) fn open(file: Arc<InputFile>, kind: KeyKind) -> Result<Self, Failure> {
        let cut = || file.not_a(Format::Safetensors);
        if file.len_bytes < 8 {
            return Err(cut());
        }
        let lead = file.copy(0, 8)?;
        let header_len = lead.as_chunks::<8>().0.first().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        if header_len > MOST_HEADER_BYTES || header_len > file.len_bytes - 8 {
            let start = file.start(512)?;
            let known = super::input::looks_like(&start);
            return Err(file.refuse(if known.is_empty() {
                format!(
                    "it is not a .safetensors file, or it is truncated: its header claims {header_len} bytes, but {} \
                     follow",
                    file.len_bytes - 8
                )
            } else {
                format!("it is not a .safetensors file{known}")
            }));
        }
        let text = file.copy(8, header_len as usize)?;
        let header = parse_header(&text).map_err(|why| file.refuse(why))?;
        let data = 8 + header_len;
        let tensors = place(header.tensors, data, file.len_bytes).map_err(|why| file.refuse(why))?;
        Ok(Self { file, tensors, metadata: header.metadata, kind })
    }

    /// Checks that every tensor can be a value under its name.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        for tensor in &self.tensors {
            let refuse = |why: String| Err(self.file.refuse(format!("the tensor {:?}: {why}", shown(&tensor.name))));
            if tensor.shape.len() > MAX_RANK {
                return refuse(format!("it has {} dimensions, more than {MAX_RANK}", tensor.shape.len()));
            }
            if tensor.len_bytes > i32::MAX as usize {
                return refuse(format!(
                    "it is {} bytes long, but a value has at most {}: import its rows with --tensor",
                    tensor.len_bytes,
                    i32::MAX
                ));
            }
            check_len(&self.key(tensor)?).or_else(refuse)?;
            if tensor.dtype == Dtype::Bool {
                self.array(tensor, true).check_rows()?;
            }
        }
        Ok(())
    }

    /// The key of a tensor: its name, or the number or the bytes that it spells.
    pub(crate) fn key(&self, tensor: &Named) -> Result<Key, Failure> {
        parse(&tensor.name, self.kind).map_err(|why| {
            let why = why.replacen("its keys", "keys", 1);
            self.file.refuse(format!("the tensor {:?}: its name is no key: {why}", shown(&tensor.name)))
        })
    }

    /// The tensor called `name`.
    pub(crate) fn find(&self, name: &str) -> Result<&Named, Failure> {
        let found = self.tensors.iter().find(|tensor| tensor.name == name);
        found.ok_or_else(|| {
            let names: Vec<&str> = self.tensors.iter().take(8).map(|tensor| tensor.name.as_str()).collect();
            let (shown, all) = (names.len(), self.tensors.len());
            let which = if shown == all { "there are".into() } else { format!("the first {shown} of {all} are") };
            self.file.refuse(format!("there is no tensor {name:?} for --tensor; {which} {}", names.join(", ")))
        })
    }

    /// The tensor as an array; if `whole`, as an array with one row.
    pub(crate) fn array(&self, tensor: &Named, whole: bool) -> Array {
        let mut shape = tensor.shape.clone();
        if whole {
            shape.insert(0, 1);
        }
        Array {
            name: format!(", in the tensor {:?}", shown(&tensor.name)),
            dtype: tensor.dtype,
            shape,
            fortran: false,
            big_endian: false,
            file: Arc::clone(&self.file),
            offset: tensor.offset,
        }
    }
}

/// Computes the offsets of tensors, which must fill the file without gaps.
fn place(tensors: Vec<(String, Described)>, data: u64, file_len_bytes: u64) -> Result<Vec<Named>, String> {
    let available = file_len_bytes - data;
    let mut placed = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let refuse = |why: String| Err(format!("the tensor {:?}: {why}", shown(&name)));
        let Some(dtype) = Dtype::from_name(&tensor.dtype) else {
            return refuse(format!("its dtype {:?} is not supported", shown(&tensor.dtype)));
        };
        let (start, end) = tensor.offsets;
        if start > end {
            return refuse(format!("its bytes end before they start: from {start} to {end}"));
        }
        let shape: Option<Vec<usize>> = tensor.shape.iter().map(|dim| usize::try_from(*dim).ok()).collect();
        let shape = shape.unwrap_or_default();
        match dtype.tensor_len_bytes(&shape) {
            Some(expected) if expected as u64 == end - start && shape.len() == tensor.shape.len() => {}
            Some(expected) => {
                return refuse(format!(
                    "{dtype} of shape {shape:?} takes {expected} bytes, but it has {}",
                    end - start
                ));
            }
            None => return refuse(format!("{dtype} of shape {shape:?} does not fill whole bytes, or is too large")),
        }
        if end > available {
            return refuse(format!(
                "its bytes end at {end} of the data, but the file has {available}: it is truncated, copy it again"
            ));
        }
        placed.push(Named { name, dtype, shape, offset: data + start, len_bytes: (end - start) as usize });
    }
    // Empty tensors come before others at the same offset.
    placed.sort_by_key(|tensor| (tensor.offset, tensor.len_bytes));
    let mut at = data;
    for tensor in &placed {
        if tensor.offset != at {
            let kind = if tensor.offset > at { "there is a gap before" } else { "other tensors overlap" };
            return Err(format!(
                "{kind} the bytes of the tensor {:?}, which start at {}",
                shown(&tensor.name),
                tensor.offset - data
            ));
        }
        at += tensor.len_bytes as u64;
    }
    if at != file_len_bytes {
        return Err(format!(
            "{} bytes follow the last tensor: the file does not match its header",
            file_len_bytes - at
        ));
    }
    Ok(placed)
}

/// The parsed header.
#[derive(Debug, Default)]
struct Header {
    tensors: Vec<(String, Described)>,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Described {
    dtype: String,
    shape: Vec<u64>,
    #[serde(rename = "data_offsets")]
    offsets: (u64, u64),
}

fn parse_header(text: &[u8]) -> Result<Header, String> {
    let refuse = |why: String| format!("its header cannot be read: {why}");
    if text.first() != Some(&b'{') {
        return Err(refuse("it does not start with '{'".into()));
    }
    std::str::from_utf8(text).map_err(|_| refuse("it is not UTF-8".into()))?;
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let header = deserializer.deserialize_map(HeaderVisitor).map_err(|error| refuse(error.to_string()))?;
    deserializer.end().map_err(|error| refuse(error.to_string()))?;
    Ok(header)
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut header = Header::default();
        let mut seen = HashMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if seen.insert(name.clone(), ()).is_some() {
                return Err(A::Error::custom(format!("the name {:?} occurs twice", shown(&name))));
            }
            if name == "__metadata__" {
                header.metadata = map.next_value_seed(MetadataSeed)?;
            } else {
                header.tensors.push((name, map.next_value()?));
            }
        }
        Ok(header)
    }
}

/// Deserializes an object of strings, or null.
struct MetadataSeed;

impl<'de> DeserializeSeed<'de> for MetadataSeed {
    type Value = BTreeMap<String, String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for MetadataSeed {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("__metadata__ to be an object of strings")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(BTreeMap::new())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut metadata = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if metadata.contains_key(&name) {
                map.next_value::<IgnoredAny>()?;
                return Err(A::Error::custom(format!("the name {:?} occurs twice in __metadata__", shown(&name))));
            }
            metadata.insert(name, map.next_value()?);
        }
        Ok(metadata)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Tensors<'a> = [(&'a str, &'a str, &'a [u64], (u64, u64))];

    fn placed(tensors: &Tensors<'_>, len_bytes: u64) -> Result<Vec<Named>, String> {
        let described = tensors.iter().map(|(name, dtype, shape, offsets)| {
            ((*name).to_owned(), Described { dtype: (*dtype).into(), shape: shape.to_vec(), offsets: *offsets })
        });
        place(described.collect(), 100, 100 + len_bytes)
    }

    #[test]
    fn tensors_fill_the_file() {
        let names: Vec<String> =
            placed(&[("b", "F32", &[1], (4, 8)), ("e", "F32", &[0, 7], (4, 4)), ("a", "U8", &[4], (0, 4))], 8)
                .unwrap()
                .into_iter()
                .map(|tensor| tensor.name)
                .collect();
        assert_eq!(names, ["a", "e", "b"]);
        let refused = |tensors: &Tensors<'_>, len_bytes, what: &str| {
            let why = placed(tensors, len_bytes).unwrap_err();
            assert!(why.contains(what), "{why}");
        };
        refused(&[("a", "F32", &[1], (0, 4)), ("b", "F32", &[1], (0, 4))], 4, "overlap");
        refused(&[("a", "F32", &[1], (0, 4)), ("b", "F32", &[1], (8, 12))], 12, "gap");
        refused(&[("a", "F32", &[1], (4, 8))], 8, "gap");
        refused(&[("a", "F32", &[1], (0, 4))], 5, "follow");
        refused(&[("a", "F32", &[1], (0, 4))], 3, "truncated");
        refused(&[("a", "F32", &[2], (0, 4))], 4, "takes 8 bytes");
        refused(&[("a", "F4", &[3], (0, 2))], 2, "whole bytes");
        refused(&[("a", "STRING", &[4], (0, 4))], 4, "not supported");
        refused(&[("a", "F32", &[1 << 40, 1 << 40], (0, 4))], 4, "too large");
        refused(&[("a", "F32", &[1], (4, 0))], 4, "from 4 to 0");
    }

    #[test]
    fn headers_are_read_strictly() {
        let tensor = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
        let metadata = |text: &str| parse_header(text.as_bytes()).map(|header| header.metadata);
        assert!(metadata(&format!(r#"{{"__metadata__":null,"t":{tensor}}}   "#)).unwrap().is_empty());
        assert_eq!(metadata(r#"{"__metadata__":{"a":"b"}}"#).unwrap().len(), 1);
        for text in [
            "",
            " {}",
            "{} x",
            "[]",
            "{",
            "{\"t\":1}",
            r#"{"__metadata__":{"a":1}}"#,
            r#"{"__metadata__":[]}"#,
            r#"{"__metadata__":{"a":"1","a":"2"}}"#,
            &format!(r#"{{"t":{tensor},"t":{tensor}}}"#),
            r#"{"t":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#,
            r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}"#,
            r#"{"t":{"dtype":"F32","shape":[1]}}"#,
        ] {
            assert!(parse_header(text.as_bytes()).is_err(), "{text}");
        }
    }
}
