//! Row checksums of sealed segments (FORMAT.md, 2.3): a damaged row is reported and not imported.

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, BooleanArray, StringArray};
use arrow::datatypes::{DataType, Schema, UInt32Type};
use crc32fast::Hasher;
use tensorcask::Bytes;

use super::elements::{elements, flat};

/// The name of the column of checksums.
pub(crate) const COLUMN: &str = "row_crc32";

/// Computes the row checksums of a segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Checksums {
    seed: u32,
}

impl Checksums {
    /// The checksums of the segment with this schema; `None` if it is not the schema of a segment.
    pub(crate) fn of(schema: &Schema) -> Option<Self> {
        let header: serde_json::Value = serde_json::from_str(schema.metadata().get("tensorcask")?).ok()?;
        let store: uuid::Uuid = header.get("store")?.as_str()?.parse().ok()?;
        let lane = u16::try_from(header.get("lane")?.as_u64()?).ok()?;
        let sequence = header.get("sequence")?.as_u64()?;
        schema.column_with_name(COLUMN)?;
        let mut hasher = Hasher::new();
        hasher.update(store.as_bytes());
        hasher.update(&lane.to_le_bytes());
        hasher.update(&sequence.to_le_bytes());
        Some(Self { seed: hasher.finalize() })
    }

    /// The first row whose checksum does not match its key and leaves, if there is one.
    pub(crate) fn first_damaged(self, key: &ArrayRef, leaves: &[&ArrayRef], checksums: &ArrayRef) -> Option<usize> {
        let checked = || -> Option<Option<usize>> {
            let checksums = checksums.as_primitive_opt::<UInt32Type>()?;
            let key = Cells::of(key)?;
            let leaves = leaves.iter().map(|leaf| Cells::of(leaf)).collect::<Option<Vec<_>>>()?;
            let matches = |row: &usize| {
                let found = self.row(&key, &leaves, *row);
                found == checksums.values().get(*row).copied()
            };
            Some((0..checksums.len()).find(|row| !matches(row)))
        };
        // A column has a type that segments do not use.
        checked().unwrap_or(Some(0))
    }

    fn row(self, key: &Cells<'_>, leaves: &[Cells<'_>], row: usize) -> Option<u32> {
        let mut hasher = Hasher::new_with_initial(self.seed);
        let key = match key {
            Cells::Fixed { bytes, width } => bytes.get(row * width..(row + 1) * width)?,
            Cells::Text(texts) => texts.value(row).as_bytes(),
            Cells::Binary(bytes) => bytes.value(row),
            _ => return None,
        };
        hasher.update(&u32::try_from(key.len()).ok()?.to_le_bytes());
        hasher.update(key);
        for leaf in leaves {
            leaf.update(&mut hasher, row)?;
        }
        Some(hasher.finalize())
    }
}

/// The cells of a column, as bytes.
enum Cells<'a> {
    Bits(&'a BooleanArray),
    Fixed {
        bytes: Bytes,
        width: usize,
    },
    Text(&'a StringArray),
    Binary(&'a BinaryArray),
    /// Tensors with a shape for each row.
    Shaped {
        dims: Box<Cells<'a>>,
        data: Box<Cells<'a>>,
    },
    /// Lists of elements of `unit` bytes, delimited by `offsets`.
    Lists {
        offsets: &'a [i32],
        elements: Bytes,
        unit: usize,
    },
}

impl<'a> Cells<'a> {
    fn of(column: &'a ArrayRef) -> Option<Self> {
        Some(match column.data_type() {
            DataType::Boolean => Self::Bits(column.as_boolean()),
            DataType::Utf8 => Self::Text(column.as_string()),
            DataType::Binary => Self::Binary(column.as_binary()),
            DataType::List(_) => {
                let list = column.as_list::<i32>();
                let (dtype, elements) = elements(list.values()).ok()??;
                Self::Lists { offsets: list.value_offsets(), elements, unit: dtype.bits() / 8 }
            }
            DataType::FixedSizeList(..) => {
                let list = column.as_fixed_size_list();
                let (dtype, bytes) = elements(&flat(list)).ok()??;
                Self::Fixed { bytes, width: list.value_length() as usize * dtype.bits() / 8 }
            }
            DataType::Struct(_) => {
                let part = |name| column.as_struct().column_by_name(name).and_then(Self::of).map(Box::new);
                Self::Shaped { dims: part("shape")?, data: part("data")? }
            }
            _ => {
                let (dtype, bytes) = elements(column).ok()??;
                Self::Fixed { bytes, width: dtype.bits() / 8 }
            }
        })
    }

    fn update(&self, hasher: &mut Hasher, row: usize) -> Option<()> {
        let bytes = match self {
            Self::Bits(flags) => {
                hasher.update(&[u8::from(flags.value(row))]);
                return Some(());
            }
            Self::Fixed { bytes, width } => {
                hasher.update(bytes.get(row * width..(row + 1) * width)?);
                return Some(());
            }
            Self::Shaped { dims, data } => {
                dims.update(hasher, row)?;
                return data.update(hasher, row);
            }
            Self::Text(texts) => texts.value(row).as_bytes(),
            Self::Binary(bytes) => bytes.value(row),
            Self::Lists { offsets, elements, unit } => {
                let at = |row: usize| usize::try_from(*offsets.get(row)?).ok();
                elements.get(at(row)? * unit..at(row + 1)? * unit)?
            }
        };
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
        Some(())
    }
}
