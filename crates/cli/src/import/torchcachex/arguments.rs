//! The command line arguments of `import-torchcachex`.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::import::arguments::CodecName;
use crate::store::WriteArguments;

/// What sequences of tensors become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Sequences {
    List,
    Tuple,
}

/// Arguments of `import-torchcachex`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The folder of the cache, <cache_dir>/<module_id>, which holds `segments/segment_000000.arrow` and so on. Its files
    /// stay as they are.
    #[arg(value_hint = clap::ValueHint::DirPath)]
    pub(super) folder: PathBuf,
    /// The store's folder (default: the folder of the cache, where tensorcask.compat.torchcachex looks for it).
    #[arg(long, value_name = "STORE", value_hint = clap::ValueHint::DirPath)]
    pub(super) to: Option<PathBuf>,
    /// Replaces the values of keys that the store has. Without it, they are kept.
    #[arg(long)]
    pub(super) overwrite: bool,
    /// Removes this from the start of keys that have it, such as "my_module:".
    #[arg(long, value_name = "TEXT")]
    pub(super) strip_prefix: Option<String>,
    /// What outputs with several tensors in an order become (default: what schema.json says, or else tuples).
    #[arg(long, value_enum)]
    pub(super) sequences: Option<Sequences>,
    /// Imports dicts that have pickled parts without these parts. Otherwise rows with pickled parts are skipped.
    #[arg(long)]
    pub(super) without_pickled: bool,
    /// Skips segments that are damaged or have another layout. Otherwise nothing is imported then.
    #[arg(long)]
    pub(super) skip_damaged: bool,
    /// How rows are compressed.
    #[arg(long, value_enum, default_value_t = CodecName::None)]
    pub(super) codec: CodecName,
    /// Checks the segments, shows what would be imported, and imports nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
    #[command(flatten)]
    pub(super) write: WriteArguments,
}

impl Arguments {
    /// The store's folder.
    pub(super) fn store(&self) -> &Path {
        self.to.as_deref().unwrap_or(&self.folder)
    }

    /// Whether sequences become lists.
    pub(super) fn lists(&self) -> bool {
        match self.sequences {
            Some(kind) => kind == Sequences::List,
            None => {
                let text = std::fs::read(self.folder.join("schema.json")).unwrap_or_default();
                let schema: Json = serde_json::from_slice(&text).unwrap_or_default();
                schema.get("output_structure").and_then(Json::as_str) == Some("list")
            }
        }
    }
}
