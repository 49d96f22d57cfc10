//! A Bitcask for tensors: an embedded key-value engine that makes an expensive tensor computation happen once.
//!
//! Put a frozen backbone before a training loop and its outputs are computed again every epoch, though they never
//! change. A [`Store`] keeps each sample's output under a stable key, on disk, and gives a batch of them back in less
//! than twice the time of a raw copy (rows of 3 KB): across epochs, processes and crashes.
//!
//! ```
//! # fn main() -> tensorcask::Result<()> {
//! # let cache_dir = tempfile::tempdir().unwrap();
//! # let cache_dir = cache_dir.path();
//! use tensorcask::Store;
//!
//! let store = Store::open(cache_dir, "vit-b16")?;
//! let keys = ["cat.jpg", "dog.jpg", "owl.jpg"];
//!
//! // Epoch 1: compute what is missing, a contiguous [keys, 4] tensor, and keep it.
//! let embeddings: Vec<f32> = (0..12).map(|i| i as f32).collect();
//! store.put_rows(&keys, &[4], &embeddings)?;
//!
//! // Epoch 2: read it, into a buffer of your own.
//! let (mut batch, mut found) = (vec![0.0_f32; 12], [false; 3]);
//! store.get_batch_into(&keys, &[4], &mut batch, &mut found)?;
//! assert_eq!(batch, embeddings);
//! store.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! - **Values** ([`Value`]) are tensors of every safetensors [`Dtype`] and any shape, scalars, and trees of them. They
//!   are returned bit for bit.
//! - **Keys** ([`Key`]) are strings, `u64` or bytes, one kind a store.
//! - **Segments** are Arrow IPC files that pyarrow and polars open without any code of ours; `FORMAT.md` describes
//!   every byte.
//! - **The index** is a bounded table in memory and immutable runs on disk. Hashes select candidates; the key's bytes
//!   are compared before a value is returned.
//! - **Damage** is found by checksums and reported as [`Error::Corrupt`], never served and never reported as a miss.
//! - **Other processes** read with a [`Reader`] while a writer writes, or write in a [`Lane`] of their own.
//!
//! # Features
//!
//! - `ndarray`, `safetensors`: conversions from and to the tensors of these crates.
//! - `tracing`: spans of the operations (`open`, `recover`, `flush`, `seal`, `merge`, `compact`, `refresh`, `get_batch`)
//!   with counts, at the level debug, in the target `tensorcask`; warnings and errors of threads in the background.
//! - `metrics`: counters, gauges and histograms, `tensorcask_…`, with the label `store`. They go to the recorder that is
//!   installed when a store is opened; gauges are set by each call of [`Reader::stats`].
//! - `unstable-storage`: the module `storage`, which keeps a store in memory or makes its disk fail. Any release may
//!   change it.

#![deny(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod buffers;
mod cast;
mod checksum;
mod codec;
mod dtype;
mod engine;
mod error;
mod index;
mod interop;
mod io;
mod key;
mod names;
mod prefetch;
mod schema;
mod segment;
mod sync;
mod tensor;
mod value;

/// The names in a store's folder, for tools that manage such folders themselves.
pub mod folder {
    pub use crate::names::{FOLDERS, OPEN_LOCK, QUARANTINE, check_module_id, is_file_of_store};
}

/// Storages, which hold a store's files: the interface and its implementations.
///
/// **Unstable**: the feature `unstable-storage` makes it public, and any release may change it. With it a store can be
/// kept in memory, and tests can make its disk fail. [`Options::open_on`] and [`Options::open_reader_on`] take a
/// storage.
///
/// ```
/// # fn main() -> tensorcask::Result<()> {
/// use std::sync::Arc;
///
/// use tensorcask::storage::{FaultStorage, MemoryStorage};
/// use tensorcask::{Options, Value};
///
/// let memory = MemoryStorage::new();
/// let store = Options::new().open_on(Arc::new(memory.clone()))?;
/// store.put("answer", Value::Int(42))?;
/// store.flush()?;
///
/// // The same disk after a power failure, and then full: reads still work.
/// let full = FaultStorage::new(Arc::new(memory.power_loss()));
/// let store = Options::new().open_on(Arc::new(full.clone()))?;
/// full.faults().fail_after_bytes(0);
/// assert!(store.put("question", Value::Null).and_then(|()| store.flush()).is_err());
/// assert_eq!(store.get("answer")?, Some(Value::Int(42)));
/// # Ok(())
/// # }
/// ```
#[cfg(feature = "unstable-storage")]
pub mod storage {
    pub use crate::io::disk::DiskStorage;
    pub use crate::io::fault::{FaultStorage, Faults};
    pub use crate::io::memory::MemoryStorage;
    pub use crate::io::{
        AppendFile, DirEntry, FileKind, LARGE_PAGE_BYTES, LockGuard, PositionLocks, ReadFile, Storage,
    };
}

/// Single flight, and the detection of deadlocks between threads, as the caching layer uses them too. Unstable.
#[doc(hidden)]
pub mod flight {
    pub use crate::engine::complete::{Work, complete};
    pub use crate::engine::flight::claims::{Claim, Claimed, Flight};
    pub use crate::engine::flight::{nested, waits};
    pub use crate::engine::leases::Leases;
}

pub use bytes::Bytes;
pub use half;

pub use crate::codec::Codec;
pub use crate::dtype::Dtype;
pub use crate::engine::caps::{Eviction, Prune};
pub use crate::engine::options::{
    Backup, Compaction, Lane, Merge, Options, Order, Recovery, ValueCacheFill, ValueCachePolicy,
};
pub use crate::engine::read::locate::{Location, RowPlace};
pub use crate::engine::read::range::Range;
pub use crate::engine::read::scan::{Entries, KeysIter};
pub use crate::engine::read::survey::{SegmentSurvey, Survey};
pub use crate::engine::read::wanted::LeafBuffer;
pub use crate::engine::reader::Reader;
pub use crate::engine::report::{
    BackupReport, CompactReport, CompactionProgress, ComputeReport, Damage, Lookup, MergeReport, Missing, OpenReport,
    Preloaded, PruneReport, Quarantined, SchemaUse, Skipped, Stats, ValueCacheStats, VerifyReport, Waiting,
};
pub use crate::engine::store::Store;
pub use crate::error::{Error, ItemError, Result};
pub use crate::io::Durability;
pub use crate::key::{AsKey, Key, KeyKind, KeyRef, Keys, MAX_KEY_LEN_BYTES};
pub use crate::schema::{Leaf, MAX_LEAVES, MAX_RANK, Schema};
pub use crate::segment::batch::Verify;
pub use crate::tensor::{Element, Tensor, TensorView};
pub use crate::value::{AsValue, MAX_DEPTH, Value, ValueView};

/// The examples in the README are compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// So are those of the page on operations.
#[cfg(doctest)]
#[doc = include_str!("../docs/operations.md")]
struct Operations;
