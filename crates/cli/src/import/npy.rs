//! `.npy` files of numpy ([NEP 1](https://numpy.org/neps/nep-0001-npy-format.html)).

use std::sync::Arc;

use tensorcask::Dtype;

use super::array::Array;
use super::input::{Format, InputFile, looks_like};
use super::literal::{Literal, parse_dictionary};
use crate::failure::Failure;

const MAGIC: &[u8] = b"\x93NUMPY";
/// The longest header that is read; real ones are far shorter.
const MOST_HEADER_BYTES: usize = 1 << 20;

/// The element type of an array, from its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Elements {
    /// Numbers of a dtype of tensors.
    Numbers { dtype: Dtype, big_endian: bool },
    /// Elements of `size` bytes whose type numpy cannot name.
    Void { size: usize },
    /// Strings of `chars` UCS-4 characters, padded with zeros.
    Text { chars: usize, big_endian: bool },
    /// Byte strings of `size` bytes, padded with zeros.
    Bytes { size: usize },
}

/// The header of an array.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    /// The name of the element type in the header.
    pub descr: String,
    /// The element type.
    pub elements: Elements,
    /// The shape.
    pub shape: Vec<usize>,
    /// Whether it is in Fortran order: the first index changes fastest.
    pub fortran: bool,
    /// The offset of the first element in the file.
    pub offset: u64,
}

impl Header {
    /// The size of an element in bytes.
    pub(crate) fn size(&self) -> usize {
        match self.elements {
            Elements::Numbers { dtype, .. } => dtype.bits() / 8,
            Elements::Void { size } | Elements::Bytes { size } => size,
            Elements::Text { chars, .. } => chars.saturating_mul(4),
        }
    }
}

/// Reads the header of the array at `start`, which takes `len_bytes`, and checks that its elements fill these. `format`
/// is the format of the file, `name` the name of the array in messages.
pub(crate) fn read_header(
    file: &InputFile,
    format: Format,
    start: u64,
    len_bytes: u64,
    name: &str,
) -> Result<Header, Failure> {
    let refuse = |what: String| file.refuse(format!("{what}{name}"));
    let lead = file.copy(start, len_bytes.min(12) as usize)?;
    if !lead.starts_with(MAGIC) {
        return Err(match format {
            Format::Npy => file.not_a(Format::Npy),
            _ => refuse(format!("expected a numpy array{}", looks_like(&lead))),
        });
    }
    let cut = || refuse(format!("it is truncated: it ends after {len_bytes} bytes, inside the header; copy it again"));
    let &[_, _, _, _, _, _, major, minor, a, b, c, d] = lead.as_slice() else { return Err(cut()) };
    let (lead_len, header_len) = match (major, minor) {
        (1, 0) => (10, usize::from(u16::from_le_bytes([a, b]))),
        (2 | 3, 0) => (12, u32::from_le_bytes([a, b, c, d]) as usize),
        _ => {
            return Err(refuse(format!(
                "it has version {major}.{minor} of the .npy format: only 1.0, 2.0 and 3.0 are supported"
            )));
        }
    };
    if header_len > MOST_HEADER_BYTES {
        return Err(refuse(format!("its header claims {header_len} bytes: it is damaged, or not an array")));
    }
    let offset = (lead_len + header_len) as u64;
    if offset > len_bytes {
        return Err(cut());
    }
    let bytes = file.copy(start + lead_len as u64, header_len)?;
    // Headers of version 3 are UTF-8, those of earlier versions Latin-1.
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) if major == 3 || text.is_ascii() => text.to_owned(),
        _ if major < 3 => bytes.iter().map(|byte| char::from(*byte)).collect(),
        _ => return Err(refuse("its header is not UTF-8".into())),
    };
    let header = parse_header(&text, start + offset).map_err(refuse)?;
    let elements = header.shape.iter().try_fold(1_usize, |product, dim| product.checked_mul(*dim));
    let expected = elements.and_then(|elements| elements.checked_mul(header.size()));
    let found = len_bytes - offset;
    match expected {
        Some(expected) if expected as u64 == found => Ok(header),
        Some(expected) => Err(refuse(format!(
            "the header says {} of shape {:?}, which takes {expected} bytes, but {found} follow{}",
            header.descr,
            header.shape,
            if (expected as u64) < found {
                ": does it hold more than one array?"
            } else {
                ": it is truncated, copy it again"
            }
        ))),
        None => Err(refuse(format!("an array of shape {:?} is larger than memory can address", header.shape))),
    }
}

fn parse_header(text: &str, offset: u64) -> Result<Header, String> {
    let mut entries = parse_dictionary(text)?;
    let mut take = |name: &str| {
        let position = entries.iter().position(|(found, _)| found == name);
        position.map(|position| entries.swap_remove(position).1).ok_or_else(|| format!("its header has no {name:?}"))
    };
    let (descr, order, dims) = (take("descr")?, take("fortran_order")?, take("shape")?);
    if let Some((name, _)) = entries.first() {
        return Err(format!("its header has the unknown entry {name:?}"));
    }
    let Literal::Flag(fortran) = order else { return Err("its fortran_order is neither True nor False".into()) };
    let dims = match dims {
        Literal::Tuple(dims) => dims,
        only @ Literal::Number(_) => vec![only],
        _ => return Err("its shape is not a tuple of numbers".into()),
    };
    let dim = |dim: &Literal| match dim {
        Literal::Number(dim) => usize::try_from(*dim).map_err(|_| format!("its shape has the invalid dimension {dim}")),
        _ => Err("its shape is not a tuple of numbers".into()),
    };
    let shape = dims.iter().map(dim).collect::<Result<Vec<_>, String>>()?;
    let (descr, elements) = match descr {
        Literal::Text(descr) => elements_of(&descr).map(|elements| (descr, elements))?,
        _ => return Err("it has structured elements: save a single field as an array".into()),
    };
    Ok(Header { descr, elements, shape, fortran, offset })
}

/// The element type of a numpy type name.
fn elements_of(descr: &str) -> Result<Elements, String> {
    if let Some(dtype) = named_dtype(descr) {
        return Ok(Elements::Numbers { dtype, big_endian: false });
    }
    let big_endian = descr.starts_with('>');
    let name = descr.strip_prefix(['<', '>', '=', '|']).unwrap_or(descr);
    let unknown = |why: &str| Err(format!("it holds elements of type {descr:?}, which {why}"));
    let Some(kind) = name.chars().next() else { return unknown("is not a numpy type") };
    let size = name.get(kind.len_utf8()..).unwrap_or_default();
    let numbers = |dtype| Ok(Elements::Numbers { dtype, big_endian });
    match (kind, size) {
        ('?', "") | ('b', "1") => numbers(Dtype::Bool),
        ('u', "1") => numbers(Dtype::U8),
        ('i', "1") => numbers(Dtype::I8),
        ('u', "2") => numbers(Dtype::U16),
        ('i', "2") => numbers(Dtype::I16),
        ('u', "4") => numbers(Dtype::U32),
        ('i', "4") => numbers(Dtype::I32),
        ('u', "8") => numbers(Dtype::U64),
        ('i', "8") => numbers(Dtype::I64),
        ('f', "2") => numbers(Dtype::F16),
        ('f', "4") => numbers(Dtype::F32),
        ('f', "8") => numbers(Dtype::F64),
        ('c', "8") => numbers(Dtype::C64),
        // numpy writes one of the types of ml_dtypes this way.
        ('f', "1") => Ok(Elements::Void { size: 1 }),
        ('f' | 'c', _) => unknown("tensors do not support: convert it to float32, float64 or complex64"),
        ('O', _) => unknown("are Python objects in a pickle, which can run code: save arrays of numbers"),
        ('M' | 'm', _) => unknown("are dates or times: save array.astype('int64')"),
        ('V', _) => size.parse().map_or_else(|_| unknown("is not a numpy type"), |size| Ok(Elements::Void { size })),
        ('U', _) => size
            .parse()
            .map_or_else(|_| unknown("is not a numpy type"), |chars| Ok(Elements::Text { chars, big_endian })),
        ('S' | 'a', _) => {
            size.parse().map_or_else(|_| unknown("is not a numpy type"), |size| Ok(Elements::Bytes { size }))
        }
        _ => unknown("is not supported"),
    }
}

/// The dtype of a type name of numpy or ml_dtypes.
fn named_dtype(name: &str) -> Option<Dtype> {
    Some(match name {
        "bool" => Dtype::Bool,
        "uint8" => Dtype::U8,
        "int8" => Dtype::I8,
        "uint16" => Dtype::U16,
        "int16" => Dtype::I16,
        "uint32" => Dtype::U32,
        "int32" => Dtype::I32,
        "uint64" => Dtype::U64,
        "int64" => Dtype::I64,
        "float16" => Dtype::F16,
        "bfloat16" => Dtype::BF16,
        "float32" => Dtype::F32,
        "float64" => Dtype::F64,
        "complex64" => Dtype::C64,
        "float8_e5m2" => Dtype::F8E5M2,
        "float8_e4m3fn" => Dtype::F8E4M3,
        "float8_e8m0fnu" => Dtype::F8E8M0,
        "float8_e4m3fnuz" => Dtype::F8E4M3Fnuz,
        "float8_e5m2fnuz" => Dtype::F8E5M2Fnuz,
        _ => return None,
    })
}

/// The `--dtype` options for dtypes of `size` bytes that numpy cannot name.
fn dtypes_of_size(size: usize) -> String {
    let unnamed =
        |dtype: &&Dtype| dtype.bits() == size * 8 && (dtype.name().starts_with("F8") || **dtype == Dtype::BF16);
    let options: Vec<String> = Dtype::ALL.iter().filter(unnamed).map(|dtype| format!("--dtype {dtype}")).collect();
    options.join(" or ")
}

/// The array of numbers that `header` describes, of `dtype` if it is given.
pub(crate) fn numbers(
    file: &Arc<InputFile>,
    header: Header,
    dtype: Option<Dtype>,
    name: String,
) -> Result<Array, Failure> {
    let refuse = |what: String| Err(file.refuse(format!("{what}{name}")));
    let descr = &header.descr;
    let (dtype, big_endian) = match (&header.elements, dtype) {
        (Elements::Numbers { dtype, big_endian }, None) => (*dtype, *big_endian),
        (Elements::Numbers { dtype, big_endian }, Some(asked)) if *dtype == asked => (asked, *big_endian),
        // Integers that hold the bits of a type that numpy cannot name.
        (Elements::Numbers { dtype, big_endian }, Some(asked))
            if dtype.bits() == asked.bits()
                && matches!(dtype.name().as_bytes().first(), Some(b'U' | b'I' | b'B'))
                && *dtype != Dtype::BF16 =>
        {
            (asked, *big_endian)
        }
        (Elements::Numbers { dtype, .. }, Some(asked)) => {
            return refuse(format!(
                "its elements are {dtype} ({descr:?}), so --dtype {asked} does not apply: it says what elements of an \
                 unnamed type, or integers of the same size, are"
            ));
        }
        (Elements::Void { size }, None) => {
            let known = dtypes_of_size(*size);
            return refuse(if known.is_empty() {
                format!("its elements are {size} bytes of a type that the file does not name ({descr:?}): convert them")
            } else {
                format!(
                    "its elements are {} bits of a type that the file does not name ({descr:?}, as ml_dtypes saves \
                     it): say which it is with {known}",
                    size * 8
                )
            });
        }
        (Elements::Void { size }, Some(asked)) if asked.bits() == size * 8 => (asked, false),
        (Elements::Void { size }, Some(asked)) => {
            return refuse(format!(
                "its elements are {size} byte(s) each ({descr:?}), but --dtype {asked} has {} bits",
                asked.bits()
            ));
        }
        (Elements::Text { .. } | Elements::Bytes { .. }, _) => {
            return refuse(format!(
                "it holds text ({descr:?}), which is no tensor: text can be the keys, given with --keys"
            ));
        }
    };
    Ok(Array {
        name,
        dtype,
        shape: header.shape,
        fortran: header.fortran,
        big_endian,
        file: Arc::clone(file),
        offset: header.offset,
    })
}

/// Opens the array of numbers in a `.npy` file.
pub(crate) fn open(file: &Arc<InputFile>, dtype: Option<Dtype>) -> Result<Array, Failure> {
    let header = read_header(file, Format::Npy, 0, file.len_bytes, "")?;
    numbers(file, header, dtype, String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_elements() {
        let number = |descr: &str| match elements_of(descr) {
            Ok(Elements::Numbers { dtype, big_endian }) => Some((dtype, big_endian)),
            _ => None,
        };
        assert_eq!(number("<f4"), Some((Dtype::F32, false)));
        assert_eq!(number("=f4"), Some((Dtype::F32, false)));
        assert_eq!(number(">i8"), Some((Dtype::I64, true)));
        assert_eq!(number("|b1"), Some((Dtype::Bool, false)));
        assert_eq!(number("bfloat16"), Some((Dtype::BF16, false)));
        assert_eq!(elements_of("<V2"), Ok(Elements::Void { size: 2 }));
        assert_eq!(elements_of("<f1"), Ok(Elements::Void { size: 1 }));
        assert_eq!(elements_of(">U3"), Ok(Elements::Text { chars: 3, big_endian: true }));
        for descr in ["", "<", "<f16", "<c16", "|O", "<M8[ns]", "<x4", "<U", "<V", "<f", "é"] {
            assert!(elements_of(descr).is_err(), "{descr}");
        }
    }
}
