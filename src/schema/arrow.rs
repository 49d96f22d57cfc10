//! The mapping from row structures to Arrow schemas.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_schema::{DataType, Field, Fields, Schema, TimeUnit};

use super::paths::leaf_paths;
use super::tree::{Dims, Header, LeafKind};
use crate::codec::Codec;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::key::KeyKind;

/// The key of the JSON header in the Arrow schema's metadata.
pub(crate) const METADATA_KEY: &str = "tensorcask";

/// The Arrow schema of a segment: `key`, `row_crc32`, `commit_time` and `leaf_crc32` if its layout has them, and one
/// column a leaf.
///
/// # Errors
/// [`Error::Invalid`] if the header cannot be written as JSON.
pub(crate) fn arrow_schema(header: &Header) -> Result<Schema> {
    let schema = &header.schema;
    let key = match schema.key {
        KeyKind::Str => DataType::Utf8,
        KeyKind::U64 => DataType::UInt64,
        KeyKind::Bytes => DataType::Binary,
    };
    let mut fields = vec![Field::new("key", key, false), Field::new("row_crc32", DataType::UInt32, false)];
    let layout = header.layout();
    if layout.has_times {
        fields.push(Field::new("commit_time", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false));
    }
    if layout.leaf_crcs > 0 {
        let crc = Arc::new(Field::new("item", DataType::UInt32, false));
        // At most `MAX_LEAVES`.
        fields.push(Field::new("leaf_crc32", DataType::FixedSizeList(crc, layout.leaf_crcs as i32), false));
    }
    let names = leaf_paths(&schema.tree);
    fields.extend(schema.leaves.iter().zip(&names).map(|(leaf, name)| leaf_field(name, leaf)));
    let json = serde_json::to_string(header).map_err(|error| Error::invalid(format!("schema header: {error}")))?;
    Ok(Schema::new_with_metadata(fields, HashMap::from([(METADATA_KEY.to_owned(), json)])))
}

fn leaf_field(name: &str, leaf: &LeafKind) -> Field {
    match leaf {
        LeafKind::Bool => Field::new(name, DataType::Boolean, false),
        LeafKind::Int => Field::new(name, DataType::Int64, false),
        LeafKind::Float => Field::new(name, DataType::Float64, false),
        LeafKind::Str => Field::new(name, DataType::Utf8, false),
        LeafKind::Bytes => Field::new(name, DataType::Binary, false),
        LeafKind::Tensor { dtype, shape, source_dtype, codec } => {
            let (data_type, mut metadata) = tensor_type(*dtype, shape, *codec);
            metadata.insert("dtype".into(), dtype.name().into());
            if let Some(source) = source_dtype {
                metadata.insert("source_dtype".into(), source.name().into());
            }
            if *codec != Codec::None {
                metadata.insert("codec".into(), codec.name().into());
            }
            Field::new(name, data_type, false).with_metadata(metadata)
        }
    }
}

/// Arrow elements a row of a tensor of one shape; 0 for all other leaves.
pub(crate) fn stored_elements(leaf: &LeafKind) -> usize {
    match leaf {
        LeafKind::Tensor { dtype, shape: Dims::Fixed(shape), .. } => {
            dtype.tensor_len_bytes(shape).unwrap_or(0) / dtype.unit_len_bytes()
        }
        _ => 0,
    }
}

/// The shape of the stored elements: complex numbers have a last dimension of 2.
fn stored_shape(dtype: Dtype, shape: &[usize]) -> Vec<usize> {
    match dtype {
        Dtype::C64 => shape.iter().copied().chain([2]).collect(),
        _ => shape.to_vec(),
    }
}

fn tensor_type(dtype: Dtype, shape: &Dims, codec: Codec) -> (DataType, HashMap<String, String>) {
    let element = Arc::new(Field::new("item", element_type(dtype), false));
    let mut metadata = HashMap::new();
    let data_type = match shape {
        Dims::Fixed(dims) if codec == Codec::None => {
            let elements = dtype.tensor_len_bytes(dims).unwrap_or(0) / dtype.unit_len_bytes();
            // Written by hand: pyarrow refuses the nulls that arrow-rs's canonical type writes there. A tensor without
            // dimensions, or of packed elements, is a plain list: readers of the extension expect neither.
            if !dims.is_empty() && dtype.bits() >= 8 {
                metadata.insert("ARROW:extension:name".into(), "arrow.fixed_shape_tensor".into());
                metadata.insert(
                    "ARROW:extension:metadata".into(),
                    format!("{{\"shape\":{}}}", json_dims(&stored_shape(dtype, dims))),
                );
            }
            // `RowSchema::check` keeps a row's bytes, and so its elements, below 2^31.
            DataType::FixedSizeList(element, i32::try_from(elements).unwrap_or(i32::MAX))
        }
        Dims::Fixed(_) => DataType::Binary,
        Dims::Variable { rank } => {
            let data = if codec == Codec::None {
                // The extension requires as many elements as the product of the row's shape. Complex numbers and packed
                // elements do not have that many.
                if dtype != Dtype::C64 && dtype.bits() >= 8 {
                    metadata.insert("ARROW:extension:name".into(), "arrow.variable_shape_tensor".into());
                    metadata.insert("ARROW:extension:metadata".into(), "{}".into());
                }
                DataType::List(element)
            } else {
                DataType::Binary
            };
            let dims = DataType::FixedSizeList(
                Arc::new(Field::new("item", DataType::Int32, false)),
                i32::try_from(*rank).unwrap_or(i32::MAX),
            );
            DataType::Struct(Fields::from(vec![Field::new("data", data, false), Field::new("shape", dims, false)]))
        }
    };
    if let Dims::Fixed(shape) = shape {
        metadata.insert("shape".into(), json_dims(shape));
    }
    (data_type, metadata)
}

fn json_dims(dims: &[usize]) -> String {
    let dims: Vec<String> = dims.iter().map(usize::to_string).collect();
    format!("[{}]", dims.join(","))
}

fn element_type(dtype: Dtype) -> DataType {
    match dtype {
        Dtype::U16 | Dtype::BF16 => DataType::UInt16,
        Dtype::I8 => DataType::Int8,
        Dtype::I16 => DataType::Int16,
        Dtype::I32 => DataType::Int32,
        Dtype::I64 => DataType::Int64,
        Dtype::U32 => DataType::UInt32,
        Dtype::U64 => DataType::UInt64,
        Dtype::F16 => DataType::Float16,
        Dtype::F32 | Dtype::C64 => DataType::Float32,
        Dtype::F64 => DataType::Float64,
        // One byte an element, or packed.
        _ => DataType::UInt8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_are_named_where_lengths_and_shapes_agree() {
        for &dtype in Dtype::ALL {
            let extension = |shape, codec| tensor_type(dtype, &shape, codec).1.remove("ARROW:extension:name");
            let packed = dtype.bits() < 8;
            let fixed = extension(Dims::Fixed(vec![4, 8]), Codec::None);
            assert_eq!(fixed.as_deref(), (!packed).then_some("arrow.fixed_shape_tensor"), "{dtype}");
            let variable = extension(Dims::Variable { rank: 2 }, Codec::None);
            let counted = !packed && dtype != Dtype::C64;
            assert_eq!(variable.as_deref(), counted.then_some("arrow.variable_shape_tensor"), "{dtype}");
            assert_eq!(extension(Dims::Variable { rank: 2 }, Codec::Zstd { level: 1 }), None);
        }
    }
}
