//! The engines, each with the settings that its own documentation advises for batches of fixed-size rows that fit into
//! memory.

use crate::Fallible;

#[expect(unsafe_code, reason = "one variant reads a memory map")]
pub mod bitcask;
pub mod fjall;
#[expect(unsafe_code, reason = "LMDB is a memory map, and heed says so")]
pub mod lmdb;
#[expect(unsafe_code, reason = "the control reads a memory map and asks for rows before it copies them")]
pub mod raw;
pub mod redb;
#[cfg(feature = "rocksdb")]
pub mod rocksdb;
pub mod sqlite;
pub mod tensorcask;

/// Copies a row that an engine returned to the output.
fn copy_row(row: &[u8], place: &mut [u8]) -> Fallible {
    if row.len() != place.len() {
        return Err(format!("a row has {} bytes, not {}", row.len(), place.len()).into());
    }
    place.copy_from_slice(row);
    Ok(())
}
