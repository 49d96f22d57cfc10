//! Row checksums of sealed segments (FORMAT.md, 2.3): a damaged row is reported and not imported.

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, BooleanArray, StringArray};
use arrow::datatypes::{DataType, Schema, TimestampMicrosecondType, UInt32Type};
use crc32fast::Hasher;
use tensorcask::Bytes;

use super::elements::{elements, flat};

/// The name of the column of checksums.
pub(crate) const COLUMN: &str = "row_crc32";
/// The name of the column of the checksums of leaves. Row checksums cover them.
pub(crate) const LEAF_COLUMN: &str = "leaf_crc32";
/// The name of the column of commit timestamps.
pub(crate) const TIME_COLUMN: &str = "commit_time";

/// Computes the row checksums of a segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Checksums {
    seed: u32,
    /// Whether leaves have checksums of their own.
    of_leaves: bool,
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
        Some(Self { seed: hasher.finalize(), of_leaves: schema.column_with_name(LEAF_COLUMN).is_some() })
    }

    /// The first row whose checksum does not match its commit timestamp, if there are `times`, its key and its leaves.
    pub(crate) fn first_damaged(
        self,
        (times, key): (Option<&ArrayRef>, &ArrayRef),
        leaves: &[&ArrayRef],
        checksums: &ArrayRef,
    ) -> Option<usize> {
        let checked = || -> Option<Option<usize>> {
            let checksums = checksums.as_primitive_opt::<UInt32Type>()?;
            let times = match times {
                Some(times) => Some(times.as_primitive_opt::<TimestampMicrosecondType>()?.values()),
                None => None,
            };
            let key = Cells::of(key)?;
            let leaves = leaves.iter().map(|leaf| Cells::of(leaf)).collect::<Option<Vec<_>>>()?;
            let matches = |row: &usize| {
                let time = times.and_then(|times| times.get(*row).copied());
                let found = self.row(time, &key, &leaves, *row);
                found == checksums.values().get(*row).copied()
            };
            Some((0..checksums.len()).find(|row| !matches(row)))
        };
        // A column has a type that segments do not use.
        checked().unwrap_or(Some(0))
    }

    fn row(self, time: Option<i64>, key: &Cells<'_>, leaves: &[Cells<'_>], row: usize) -> Option<u32> {
        let mut hasher = Hasher::new_with_initial(self.seed);
        time.into_iter().for_each(|time| hasher.update(&time.to_le_bytes()));
        let key = match key {
            Cells::Scalar { bytes, width } => bytes.get(row * width..(row + 1) * width)?,
            Cells::Text(texts) => texts.value(row).as_bytes(),
            Cells::Binary(bytes) => bytes.value(row),
            _ => return None,
        };
        hasher.update(&u32::try_from(key.len()).ok()?.to_le_bytes());
        hasher.update(key);
        let mut of_leaves = Vec::new();
        for leaf in leaves {
            if self.of_leaves && leaf.has_checksum() {
                let mut hasher = Hasher::new_with_initial(self.seed);
                leaf.update(&mut hasher, row)?;
                of_leaves.extend_from_slice(&hasher.finalize().to_le_bytes());
            } else {
                leaf.update(&mut hasher, row)?;
            }
        }
        hasher.update(&of_leaves);
        Some(hasher.finalize())
    }
}

/// The cells of a column, as bytes.
enum Cells<'a> {
    Bits(&'a BooleanArray),
    Scalar {
        bytes: Bytes,
        width: usize,
    },
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
                Self::Scalar { bytes, width: dtype.bits() / 8 }
            }
        })
    }

    /// Whether leaves of this kind have checksums of their own, where leaves have.
    fn has_checksum(&self) -> bool {
        !matches!(self, Self::Bits(_) | Self::Scalar { .. })
    }

    fn update(&self, hasher: &mut Hasher, row: usize) -> Option<()> {
        let bytes = match self {
            Self::Bits(flags) => {
                hasher.update(&[u8::from(flags.value(row))]);
                return Some(());
            }
            Self::Scalar { bytes, width } | Self::Fixed { bytes, width } => {
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
