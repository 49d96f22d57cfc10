//! The structure of a segment's rows, and its mapping to Arrow.
//!
//! A row is a key, a checksum and the *leaves* of a value tree, one Arrow column a leaf. The tree itself is the same
//! for all rows of a segment and is stored as JSON in the Arrow schema's metadata under [`METADATA_KEY`].

mod arrow;
mod derive;
mod described;
mod paths;
mod row_layout;
mod tree;

pub(crate) use self::arrow::{METADATA_KEY, arrow_schema, stored_elements};
pub(crate) use self::derive::{LeafValue, derive, single_tensor_schema, stored_dtype};
pub use self::described::{Leaf, Schema};
pub(crate) use self::paths::{ROOT, leaf_at, value_at};
pub(crate) use self::row_layout::{ROW_LAYOUT_VERSION, RowLayout};
pub(crate) use self::tree::{Dims, Header, LeafKind, Node, RowSchema, Storage};
pub use self::tree::{MAX_LEAVES, MAX_RANK};
