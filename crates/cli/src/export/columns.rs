//! Values as the columns of Arrow record batches.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, FixedSizeListArray, Float64Array, Int64Array, NullArray, RecordBatch,
    StringArray, UInt64Array,
};
use arrow::datatypes::{DataType, Field, Schema};
use tensorcask::{Dtype, Key, Tensor, Value};

use super::lists::{elements, nested};
use super::structure::Structure;
use crate::failure::Failure;

/// Why a batch could not be built.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The named column has rows of several shapes.
    Ragged(String),
    /// Any other failure.
    Failure(Failure),
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

/// Builds record batches from values.
pub(crate) struct Columns {
    plain: bool,
    /// Whether tensors without dimensions are numbers, not lists of one.
    numbers: bool,
    /// Columns whose rows have several shapes.
    ragged: HashSet<String>,
    /// Dtype and shape of the first tensor of each column.
    first: HashMap<String, (Dtype, Vec<usize>)>,
    /// The structure of the first value; all values must have it.
    structure: Option<Structure>,
    /// Tensors of which lists do not record the whole shape.
    shapes_lost: u64,
}

/// Collects the leaves of a value with their column names.
fn leaves<'a>(value: &'a Value, name: String, found: &mut Vec<(String, &'a Value)>) {
    match value {
        Value::Map(items) => items.iter().for_each(|(part, item)| {
            leaves(item, format!("{name}/{}", part.replace('~', "~0").replace('/', "~1")), found);
        }),
        Value::List(items) | Value::Tuple(items) => {
            items.iter().enumerate().for_each(|(at, item)| leaves(item, format!("{name}/{at}"), found));
        }
        leaf => found.push((name, leaf)),
    }
}

impl Columns {
    /// If `plain`, columns of tensors are nested lists without extension types. Columns in `ragged` are lists in any
    /// case.
    pub(crate) fn new(plain: bool, ragged: HashSet<String>) -> Self {
        Self { plain, numbers: false, ragged, first: HashMap::new(), structure: None, shapes_lost: 0 }
    }

    /// Columns for programs that read tables: tensors without dimensions are numbers.
    pub(crate) fn for_tables(ragged: HashSet<String>) -> Self {
        Self { numbers: true, ..Self::new(false, ragged) }
    }

    /// How many tensors will be read back with another shape: after an empty dimension, no list tells the length of the
    /// next ones.
    pub(crate) fn shapes_lost(&self) -> u64 {
        self.shapes_lost
    }

    /// The keys and values as a record batch.
    ///
    /// # Errors
    /// The values differ in structure, Arrow has no type for them, or a column is ragged.
    pub(crate) fn batch(&mut self, values: &[(Key, Value)]) -> Result<RecordBatch, Refused> {
        let mut columns: Vec<(String, Vec<&Value>)> = Vec::new();
        for (row, (key, value)) in values.iter().enumerate() {
            let mut found = Vec::new();
            self.check_structure(key, value)?;
            leaves(value, "value".into(), &mut found);
            if row == 0 {
                columns = found.iter().map(|(name, _)| (name.clone(), Vec::with_capacity(values.len()))).collect();
            }
            columns.iter_mut().zip(found).for_each(|((_, column), (_, leaf))| column.push(leaf));
        }
        let keys = key_column(values);
        let mut fields = vec![Field::new("key", keys.data_type().clone(), false)];
        let mut arrays = vec![keys];
        for (name, column) in &columns {
            let (field, array) = self.leaf_column(name, column)?;
            fields.push(field);
            arrays.push(array);
        }
        let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
        let header = self.structure.as_ref().filter(|_| !self.plain).and_then(|structure| structure.header(&names));
        let metadata: HashMap<_, _> = header.map(|header| ("tensorcask".to_owned(), header)).into_iter().collect();
        let batch = RecordBatch::try_new(Arc::new(Schema::new_with_metadata(fields, metadata)), arrays);
        batch.map_err(|error| Failure::input(error.to_string()).into())
    }

    /// Refuses a value of another structure than the first one.
    fn check_structure(&mut self, key: &Key, value: &Value) -> Result<(), Failure> {
        let structure = self.structure.get_or_insert_with(|| Structure::of(value));
        if !structure.is_of(value) {
            return Err(Failure::input(format!(
                "the value of {:?} differs in structure from those before it, but an Arrow file has one schema: select \
                 some with --prefix",
                key.to_string()
            )));
        }
        if self.plain && structure.has_empty() {
            return Err(Failure::input(format!(
                "the value of {:?} has an empty list or map, which plain columns cannot express: leave out --plain",
                key.to_string()
            )));
        }
        Ok(())
    }

    fn leaf_column(&mut self, name: &str, column: &[&Value]) -> Result<(Field, ArrayRef), Refused> {
        if column.iter().all(|value| value.as_tensor().is_some()) {
            let tensors: Vec<&Tensor> = column.iter().filter_map(|value| value.as_tensor()).collect();
            return self.tensor_column(name, &tensors);
        }
        let mixed =
            || Failure::input(format!("the leaf {name} has values of several types: select some with --prefix"));
        macro_rules! scalars {
            ($array:ident, $variant:ident, $convert:expr) => {{
                let items: Option<Vec<_>> = column
                    .iter()
                    .map(|value| if let Value::$variant(item) = value { Some($convert(item)) } else { None })
                    .collect();
                Arc::new($array::from(items.ok_or_else(mixed)?)) as ArrayRef
            }};
        }
        let array = match column.first() {
            Some(Value::Null) if column.iter().all(|value| matches!(value, Value::Null)) => {
                let array: ArrayRef = Arc::new(NullArray::new(column.len()));
                return Ok((Field::new(name, DataType::Null, true), array));
            }
            Some(Value::Bool(_)) => scalars!(BooleanArray, Bool, |flag: &bool| *flag),
            Some(Value::Int(_)) => scalars!(Int64Array, Int, |number: &i64| *number),
            Some(Value::Float(_)) => scalars!(Float64Array, Float, |number: &f64| *number),
            Some(Value::Str(_)) => scalars!(StringArray, Str, |text: &String| text.clone()),
            Some(Value::Bytes(_)) => {
                let items: Option<Vec<&[u8]>> = column
                    .iter()
                    .map(|value| if let Value::Bytes(bytes) = value { Some(&bytes[..]) } else { None })
                    .collect();
                Arc::new(BinaryArray::from_iter_values(items.ok_or_else(mixed)?)) as ArrayRef
            }
            _ => return Err(mixed().into()),
        };
        Ok((Field::new(name, array.data_type().clone(), false), array))
    }

    fn tensor_column(&mut self, name: &str, tensors: &[&Tensor]) -> Result<(Field, ArrayRef), Refused> {
        let Some(first) = tensors.first() else { return Err(Failure::input(format!("{name} has no rows")).into()) };
        let (dtype, shape) =
            self.first.entry(name.to_owned()).or_insert_with(|| (first.dtype(), first.shape().to_vec()));
        let (dtype, ragged) = (*dtype, self.ragged.contains(name));
        for tensor in tensors {
            if tensor.dtype() != dtype {
                return Err(Failure::input(format!(
                    "{name} has the dtypes {} and {dtype}, but a column of an Arrow file has one: select some with \
                     --prefix",
                    tensor.dtype()
                ))
                .into());
            }
            if tensor.shape().len() != shape.len() {
                return Err(Failure::input(format!(
                    "{name} has rows of {} and of {} dimensions: select some with --prefix",
                    shape.len(),
                    tensor.shape().len()
                ))
                .into());
            }
            if !ragged && tensor.shape() != shape {
                return Err(Refused::Ragged(name.to_owned()));
            }
        }
        if self.plain
            && let Some(why) = no_plain_type(dtype)
        {
            return Err(Failure::input(format!(
                "{name} has the dtype {dtype}, for which Arrow has no plain type: {why}"
            ))
            .into());
        }
        if self.numbers && shape.is_empty() && dtype != Dtype::C64 && no_plain_type(dtype).is_none() {
            let (array, _) = elements(name, dtype, tensors, true)?;
            return Ok((Field::new(name, array.data_type().clone(), false), array));
        }
        if !self.plain && !ragged {
            return Ok(fixed_column(name, dtype, shape, tensors)?);
        }
        if dtype.bits() < 8 {
            return Err(Failure::input(format!(
                "{name} has rows of several shapes and the dtype {dtype}, whose elements are smaller than a byte: \
                 export to safetensors"
            ))
            .into());
        }
        let is_lost = |tensor: &&&Tensor| tensor.shape().iter().skip_while(|dim| **dim > 0).any(|dim| *dim > 0);
        let array = nested(name, dtype, shape.len(), tensors, self.plain)?;
        self.shapes_lost += tensors.iter().filter(is_lost).count() as u64;
        let field = Field::new(name, array.data_type().clone(), false);
        Ok((if self.plain { field } else { field.with_metadata(named(dtype)) }, array))
    }
}

/// Advice for a dtype that Arrow does not have: without metadata, a reader would take its bits for integers.
fn no_plain_type(dtype: Dtype) -> Option<&'static str> {
    match dtype {
        Dtype::BF16 => Some("add --f16-as-f32"),
        Dtype::F4
        | Dtype::F6E2M3
        | Dtype::F6E3M2
        | Dtype::F8E5M2
        | Dtype::F8E4M3
        | Dtype::F8E8M0
        | Dtype::F8E4M3Fnuz
        | Dtype::F8E5M2Fnuz => Some("leave out --plain, or export to safetensors"),
        _ => None,
    }
}

fn named(dtype: Dtype) -> HashMap<String, String> {
    HashMap::from([("dtype".to_owned(), dtype.name().to_owned())])
}

/// A column of tensors of one shape, in the layout of segments.
fn fixed_column(name: &str, dtype: Dtype, shape: &[usize], tensors: &[&Tensor]) -> Result<(Field, ArrayRef), Failure> {
    let (child, unit) = elements(name, dtype, tensors, false)?;
    let row = tensors.first().map_or(0, |tensor| tensor.data().len() / unit);
    let row = i32::try_from(row).map_err(|_| Failure::input(format!("{name}: rows are too large")))?;
    let item = Arc::new(Field::new("item", child.data_type().clone(), false));
    let list = FixedSizeListArray::try_new_with_length(Arc::clone(&item), row, child, None, tensors.len())
        .map_err(|error| Failure::input(format!("{name}: {error}")))?;
    let mut metadata = named(dtype);
    // The list type does not distinguish a tensor without dimensions, nor tell the shape of sub-byte elements.
    let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
    metadata.insert("shape".into(), format!("[{}]", dims.join(",")));
    if !shape.is_empty() && dtype.bits() >= 8 {
        let complex = (dtype == Dtype::C64).then_some(&2);
        let dims: Vec<String> = shape.iter().chain(complex).map(usize::to_string).collect();
        // Written by hand: pyarrow rejects the nulls in the JSON of arrow-rs's canonical type.
        metadata.insert("ARROW:extension:name".into(), "arrow.fixed_shape_tensor".into());
        metadata.insert("ARROW:extension:metadata".into(), format!("{{\"shape\":[{}]}}", dims.join(",")));
    }
    Ok((Field::new(name, DataType::FixedSizeList(item, row), false).with_metadata(metadata), Arc::new(list)))
}

fn key_column(values: &[(Key, Value)]) -> ArrayRef {
    let keys = values.iter().map(|(key, _)| key);
    match values.first() {
        Some((Key::U64(_), _)) => Arc::new(UInt64Array::from_iter_values(
            keys.map(|key| if let Key::U64(number) = key { *number } else { 0 }),
        )),
        Some((Key::Bytes(_), _)) => Arc::new(BinaryArray::from_iter_values(
            keys.map(|key| if let Key::Bytes(bytes) = key { &bytes[..] } else { &[] }),
        )),
        _ => Arc::new(StringArray::from_iter_values(
            keys.map(|key| if let Key::Str(text) = key { text.as_str() } else { "" }),
        )),
    }
}
