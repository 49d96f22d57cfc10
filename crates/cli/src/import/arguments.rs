//! The arguments of `tensorcask import`.

use std::path::PathBuf;

use clap::ValueEnum;
use tensorcask::{Codec, Dtype, KeyKind, Options, Store};

use crate::failure::Failure;
use crate::store::WriteArguments;

/// How rows are compressed.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum CodecName {
    None,
    Zstd,
    ShuffleZstd,
}

impl CodecName {
    /// The codec, at a moderate level.
    pub(crate) fn codec(self) -> Codec {
        match self {
            Self::None => Codec::None,
            Self::Zstd => Codec::Zstd { level: 3 },
            Self::ShuffleZstd => Codec::ShuffleZstd { level: 3 },
        }
    }
}

/// Arguments of `import`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The store's folder; created if it does not exist.
    #[arg(value_hint = clap::ValueHint::DirPath)]
    pub store: PathBuf,
    /// .npy, .npz, .safetensors, Arrow (.arrow, .ipc, .feather; files and streams) or .parquet files, or folders of
    /// them (read in the order of names). All must be of one format.
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// A file with the key of each row: a text file with one key per line, or a .npy file of integers or strings. Given
    /// once for all rows, or once per input file.
    #[arg(long)]
    pub keys: Vec<PathBuf>,
    /// The column of an Arrow or Parquet file, or the array of a .npz file, that holds the keys (default: `key`, if it
    /// exists).
    #[arg(long, conflicts_with = "keys")]
    pub key_column: Option<String>,
    /// The kind of the keys: str, u64, or bytes (hexadecimal in text files and in the names of .safetensors files).
    /// Default: str for text files and names, else the type of the column or array.
    #[arg(long, value_parser = ["str", "u64", "bytes"])]
    pub key_kind: Option<String>,
    /// Numbers rows without keys from this number on (default: 0).
    #[arg(long, conflicts_with_all = ["keys", "key_column"])]
    pub first_key: Option<u64>,
    /// Prepends this to each key; row numbers become text.
    #[arg(long)]
    pub key_prefix: Option<String>,
    /// Lets row numbers replace existing keys of the store. Explicit keys always replace them.
    #[arg(long)]
    pub overwrite: bool,
    /// The tensor of a .safetensors file or the array of a .npz file whose rows become values, or the column whose
    /// cells do. Without it, each tensor becomes a value under its name, and each row of several arrays or columns
    /// becomes a map.
    #[arg(long)]
    pub tensor: Option<String>,
    /// The dtype of elements in a .npy or .npz file that numpy cannot name, or that were saved as integers of the same
    /// size: BF16, F8_E4M3, F8_E5M2, …
    #[arg(long, value_parser = parse_dtype)]
    pub dtype: Option<Dtype>,
    /// How rows are compressed.
    #[arg(long, value_enum, default_value_t = CodecName::None)]
    pub codec: CodecName,
    /// Stores F32 and F64 as F16 or BF16 (lossy).
    #[arg(long, value_parser = ["F16", "BF16"])]
    pub store_as: Option<String>,
    #[command(flatten)]
    pub write: WriteArguments,
}

fn parse_dtype(name: &str) -> Result<Dtype, String> {
    Dtype::from_name(&name.to_ascii_uppercase()).ok_or_else(|| {
        let names: Vec<&str> = Dtype::ALL.iter().map(|dtype| dtype.name()).collect();
        format!("expected one of {}", names.join(", "))
    })
}

impl Arguments {
    /// The kind of keys, if given.
    pub(crate) fn key_kind(&self) -> Option<KeyKind> {
        self.key_kind.as_deref().map(|name| match name {
            "u64" => KeyKind::U64,
            "bytes" => KeyKind::Bytes,
            _ => KeyKind::Str,
        })
    }

    /// The dtype that wider floats are stored as, if given.
    pub(crate) fn store_as(&self) -> Option<Dtype> {
        self.store_as.as_deref().and_then(Dtype::from_name)
    }

    /// Opens the store with a small write buffer: chunks are flushed one by one.
    pub(crate) fn open_store(&self) -> Result<Store, Failure> {
        let options = Options::new().codec(self.codec.codec()).store_as(self.store_as());
        let options = options.buffer_bytes(16 << 20).flush_every(8192, 8 << 20).memtable_keys(1 << 18);
        crate::store::writer(&self.store, &self.write, options)
    }
}
