//! The columns of a segment of torchcachex: keys, tensors as pairs of elements and shape, and pickled parts.

use std::collections::BTreeSet;

use arrow::datatypes::{DataType, Schema};

use crate::import::elements::dtype_of;

/// What the tensors of a row form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// The value is a tensor.
    Tensor,
    /// The value is a map, with these names.
    Dict,
    /// The value is a list or a tuple.
    Sequence,
}

/// The columns of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Columns {
    /// Its name in the value; empty if the value is the tensor.
    pub name: String,
    /// The positions of its elements and of its shape in the schema.
    pub data: usize,
    pub shape: usize,
}

/// The columns of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub key: usize,
    pub kind: Kind,
    pub tensors: Vec<Columns>,
    /// The columns that hold pickled parts of the values.
    pub pickled: Vec<String>,
}

impl Layout {
    /// Recognises the columns.
    pub(super) fn of(schema: &Schema) -> Result<Self, String> {
        let key = position(schema, "key").ok_or("it has no column \"key\", so no program wrote it as a cache")?;
        if !matches!(schema.field(key).data_type(), DataType::Utf8 | DataType::LargeUtf8) {
            return Err(format!("its keys are of type {}, not text", schema.field(key).data_type()));
        }
        let pickled = schema.fields().iter().filter(|field| is_binary(field.data_type()));
        let pickled: Vec<String> = pickled.map(|field| field.name().clone()).collect();
        let named = schema.metadata().get("tensor_keys").map(|text| names(text)).transpose()?;
        let (kind, names) = match named {
            Some(names) => (Kind::Dict, names),
            None if position(schema, "data").is_some() && position(schema, "shape").is_some() => {
                (Kind::Tensor, vec![String::new()])
            }
            None => {
                let names = stems(schema);
                let kind = if are_numbered(&names, &pickled) { Kind::Sequence } else { Kind::Dict };
                (kind, names)
            }
        };
        let tensors = names.into_iter().map(|name| tensor(schema, name)).collect::<Result<Vec<_>, _>>()?;
        check_all_known(schema, key, &tensors, &pickled)?;
        Ok(Self { key, kind, tensors, pickled })
    }

    /// The positions of the columns that are read, in the order of the schema.
    pub(super) fn positions(&self) -> Vec<usize> {
        let pairs = self.tensors.iter().flat_map(|tensor| [tensor.data, tensor.shape]);
        pairs.chain([self.key]).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

fn position(schema: &Schema, name: &str) -> Option<usize> {
    schema.fields().iter().position(|field| field.name() == name)
}

fn is_binary(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Binary | DataType::LargeBinary)
}

/// The names of a dict's tensors.
fn names(json: &str) -> Result<Vec<String>, String> {
    serde_json::from_str(json)
        .map_err(|_| format!("its metadata \"tensor_keys\" is {json:?}, which is no list of names"))
}

/// The names before `_data`, in the order of the schema.
fn stems(schema: &Schema) -> Vec<String> {
    let lists = schema.fields().iter().filter(|field| !is_binary(field.data_type()));
    lists.filter_map(|field| field.name().strip_suffix("_data").map(str::to_owned)).collect()
}

/// Whether the parts are called `item0`, `item1`, … or `tensor_0`, `tensor_1`, …, with none left out.
fn are_numbered(tensors: &[String], pickled: &[String]) -> bool {
    let parts = tensors.iter().map(String::as_str).chain(pickled.iter().filter_map(|name| name.strip_suffix("_blob")));
    let mut numbers = BTreeSet::new();
    for name in parts {
        let number = name.strip_prefix("item").or_else(|| name.strip_prefix("tensor_"));
        match number.and_then(|number| number.parse::<usize>().ok()) {
            Some(number) => numbers.insert(number),
            None => return false,
        };
    }
    !numbers.is_empty() && numbers.into_iter().enumerate().all(|(at, number)| at == number)
}

fn tensor(schema: &Schema, name: String) -> Result<Columns, String> {
    let called = |part: &str| if name.is_empty() { part.to_owned() } else { format!("{name}_{part}") };
    let find = |part: &str, fits: &dyn Fn(&DataType) -> bool| {
        let name = called(part);
        let at = position(schema, &name).ok_or_else(|| format!("it has no column {name:?}"))?;
        let data_type = schema.field(at).data_type();
        match data_type {
            DataType::List(item) | DataType::LargeList(item) if fits(item.data_type()) => Ok(at),
            other => Err(format!("its column {name:?} is of type {other}, and not a list of numbers")),
        }
    };
    let data = find("data", &|item| dtype_of(item).is_some())?;
    let shape = find("shape", &DataType::is_integer)?;
    Ok(Columns { name, data, shape })
}

fn check_all_known(schema: &Schema, key: usize, tensors: &[Columns], pickled: &[String]) -> Result<(), String> {
    let known = |at: usize, name: &String| {
        at == key || pickled.contains(name) || tensors.iter().any(|tensor| tensor.data == at || tensor.shape == at)
    };
    match schema.fields().iter().enumerate().find(|(at, field)| !known(*at, field.name())) {
        Some((_, field)) => Err(format!(
            "its column {:?} of type {} is no part of the layout of torchcachex",
            field.name(),
            field.data_type()
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use arrow::datatypes::Field;

    use super::*;

    fn schema(columns: &[&str], metadata: &[(&str, &str)]) -> Schema {
        let of = |name: &&str| {
            let list = |item| DataType::List(std::sync::Arc::new(Field::new("item", item, true)));
            let data_type = match *name {
                "key" => DataType::Utf8,
                name if name.ends_with("blob") => DataType::Binary,
                name if name.ends_with("shape") => list(DataType::Int64),
                _ => list(DataType::Float32),
            };
            Field::new(*name, data_type, true)
        };
        let metadata: HashMap<_, _> = metadata.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        Schema::new_with_metadata(columns.iter().map(of).collect::<Vec<_>>(), metadata)
    }

    fn kind(columns: &[&str], metadata: &[(&str, &str)]) -> Result<(Kind, Vec<String>), String> {
        let layout = Layout::of(&schema(columns, metadata))?;
        Ok((layout.kind, layout.tensors.into_iter().map(|tensor| tensor.name).collect()))
    }

    #[test]
    fn the_columns_tell_the_kind() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(kind(&["key", "data", "shape"], &[]), Ok((Kind::Tensor, names(&[""]))));
        let dict = ["key", "b_data", "b_shape", "a_data", "a_shape", "m_blob"];
        assert_eq!(kind(&dict, &[("tensor_keys", r#"["a", "b"]"#)]), Ok((Kind::Dict, names(&["a", "b"]))));
        assert_eq!(kind(&dict, &[]), Ok((Kind::Dict, names(&["b", "a"]))));
        let items = ["key", "item0_data", "item0_shape", "item1_blob"];
        assert_eq!(kind(&items, &[]), Ok((Kind::Sequence, names(&["item0"]))));
        assert_eq!(kind(&items, &[("tensor_keys", r#"["item0"]"#)]), Ok((Kind::Dict, names(&["item0"]))));
        let tensors = ["key", "tensor_0_data", "tensor_0_shape"];
        assert_eq!(kind(&tensors, &[("num_tensors", "1")]), Ok((Kind::Sequence, names(&["tensor_0"]))));
        assert_eq!(kind(&["key", "item1_data", "item1_shape"], &[]), Ok((Kind::Dict, names(&["item1"]))));
        assert_eq!(kind(&["key", "blob"], &[]), Ok((Kind::Dict, names(&[]))));
        // A tensor may be called as another part of the layout.
        let odd = ["key", "data_data", "data_shape"];
        assert_eq!(kind(&odd, &[("tensor_keys", r#"["data"]"#)]), Ok((Kind::Dict, names(&["data"]))));
    }

    #[test]
    fn other_files_are_refused() {
        for (columns, metadata, why) in [
            (vec!["data", "shape"], vec![], "no column \"key\""),
            (vec!["key", "x_data"], vec![], "no column \"x_shape\""),
            (vec!["key", "data", "shape", "extra"], vec![], "\"extra\""),
            (vec!["key", "x_data", "x_shape"], vec![("tensor_keys", r#"["y"]"#)], "no column \"y_data\""),
            (vec!["key"], vec![("tensor_keys", "{")], "tensor_keys"),
        ] {
            let found = kind(&columns, &metadata).unwrap_err();
            assert!(found.contains(why), "{found}");
        }
    }
}
