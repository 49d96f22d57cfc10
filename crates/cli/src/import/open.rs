//! Opens input files as sources of rows, and refuses options that do not apply to them.

use std::sync::Arc;

use tensorcask::{Dtype, KeyKind};

use super::arguments::Arguments;
use super::arrow_file::ArrowFile;
use super::input::{Format, InputFile, Inputs};
use super::keys::KeySource;
use super::parquet::ParquetFile;
use super::safetensors::TensorFile;
use super::source::{Arrays, Source};
use super::table::{Table, Wanted};
use super::{npy, npz};
use crate::failure::Failure;

/// Opens all input files.
pub(crate) fn sources(arguments: &Arguments, inputs: &Inputs) -> Result<Vec<Box<dyn Source>>, Failure> {
    if let Some(format) = inputs.format {
        check_format(arguments, format)?;
    }
    let one = |path: &std::path::PathBuf| {
        let file = Arc::new(InputFile::open(path)?);
        match inputs.format {
            Some(Format::Npy) => array(&file, npy::open(&file, arguments.dtype)?),
            Some(Format::Npz) => archive(arguments, &file),
            Some(Format::Safetensors) => tensors(arguments, file),
            Some(Format::Arrow) => {
                Ok(Box::new(Table::new(ArrowFile::open(file)?, wanted(arguments))?) as Box<dyn Source>)
            }
            _ => Ok(Box::new(Table::new(ParquetFile::open(file)?, wanted(arguments))?) as Box<dyn Source>),
        }
    };
    inputs.files.iter().map(one).collect()
}

fn wanted(arguments: &Arguments) -> Wanted<'_> {
    Wanted {
        tensor: arguments.tensor.as_deref(),
        key_column: arguments.key_column.as_deref(),
        default_key: arguments.keys.is_empty() && arguments.first_key.is_none(),
        key_kind: arguments.key_kind(),
    }
}

fn array(file: &InputFile, array: super::array::Array) -> Result<Box<dyn Source>, Failure> {
    let arrays = vec![(String::new(), array)];
    Ok(Box::new(Arrays { path: file.path.clone(), arrays, maps: false, keys: None, metadata: Default::default() }))
}

fn archive(arguments: &Arguments, file: &Arc<InputFile>) -> Result<Box<dyn Source>, Failure> {
    Ok(Box::new(npz::open(file, wanted(arguments), arguments.dtype)?))
}

fn tensors(arguments: &Arguments, file: Arc<InputFile>) -> Result<Box<dyn Source>, Failure> {
    let tensors = TensorFile::open(file, arguments.key_kind().unwrap_or(KeyKind::Str))?;
    let Some(name) = &arguments.tensor else { return Ok(Box::new(tensors)) };
    let array = tensors.array(tensors.find(name)?, false);
    let path = tensors.file.path.clone();
    let metadata = tensors.metadata;
    Ok(Box::new(Arrays { path, arrays: vec![(name.clone(), array)], maps: false, keys: None, metadata }))
}

/// Refuses options that do not apply to the format.
fn check_format(arguments: &Arguments, format: Format) -> Result<(), Failure> {
    let named = format == Format::Safetensors && arguments.tensor.is_none();
    let table = matches!(format, Format::Npz | Format::Arrow | Format::Parquet);
    let numbers = arguments.first_key.is_some();
    let refused = [
        (arguments.tensor.is_some() && format == Format::Npy, "--tensor", "the file has one array"),
        (arguments.key_column.is_some() && !table, "--key-column", "the format has no columns"),
        (
            arguments.dtype.is_some() && !matches!(format, Format::Npy | Format::Npz),
            "--dtype",
            "the file names its dtypes",
        ),
        (
            !arguments.keys.is_empty() && named,
            "--keys",
            "each tensor becomes a value under its name, unless --tensor chooses one whose rows become values",
        ),
        (
            numbers && named,
            "--first-key",
            "each tensor becomes a value under its name, unless --tensor chooses one whose rows become values",
        ),
    ];
    match refused.iter().find(|(refused, ..)| *refused) {
        Some((_, option, why)) => {
            Err(Failure::input(format!("{option} does not apply to {} files: {why}", format.name())))
        }
        None => Ok(()),
    }
}

/// Refuses options that do not apply to the contents of the files.
pub(crate) fn check_options(
    arguments: &Arguments,
    format: Option<Format>,
    keys: &KeySource,
    sources: &[Box<dyn Source>],
) -> Result<(), Failure> {
    if matches!(keys, KeySource::Numbers { .. }) && arguments.key_kind.is_some() {
        return Err(Failure::input(
            "--key-kind does not apply to rows without keys: give --keys or --key-column".into(),
        ));
    }
    let dtypes: Vec<Dtype> = sources.iter().flat_map(|source| source.dtypes()).collect();
    if let Some(target) = arguments.store_as()
        && !dtypes.is_empty()
        && !dtypes.iter().any(|dtype| matches!(dtype, Dtype::F32 | Dtype::F64))
    {
        let mut names: Vec<&str> = dtypes.iter().map(|dtype| dtype.name()).collect();
        names.sort_unstable();
        names.dedup();
        return Err(Failure::input(format!(
            "--store-as {target} does not apply: it converts F32 and F64, but the {} input has {}",
            format.map_or("", Format::name),
            names.join(", ")
        )));
    }
    Ok(())
}
