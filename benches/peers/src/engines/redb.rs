//! redb.
//!
//! Settings, from its documentation (<https://docs.rs/redb>): `Builder::set_cache_size` so that the data fits (its
//! default is 1 GiB); `Durability::Immediate` for durable batches; otherwise `Durability::None`, whose commits "will
//! not be persisted to disk unless followed by a commit with Durability::Immediate": redb has no level in between that
//! survives only the end of the process. Page size and the rest cannot be chosen. Two-phase commit and quick repair
//! stay off, as they are by default.

use ::redb::{Builder, Database, Durability, ReadOnlyDatabase, ReadTransaction, ReadableDatabase, TableDefinition};

use super::copy_row;
use crate::Fallible;
use crate::engine::{Engine, Opening};
use crate::rows;

const ROWS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("rows");

enum Handle {
    Writer(Database),
    Reader(ReadOnlyDatabase),
}

/// One table.
pub struct Redb {
    handle: Handle,
    row_bytes: usize,
    durability: Durability,
}

impl Redb {
    /// Creates the file, or opens it for reading.
    ///
    /// # Errors
    /// Errors of redb.
    pub fn open(opening: &Opening, create: bool) -> Fallible<Self> {
        let path = opening.dir.join("rows.redb");
        let mut builder = Builder::new();
        builder.set_cache_size(usize::try_from(opening.cache_bytes())?);
        let handle =
            if create { Handle::Writer(builder.create(path)?) } else { Handle::Reader(builder.open_read_only(path)?) };
        let durability = if opening.durable { Durability::Immediate } else { Durability::None };
        Ok(Self { handle, row_bytes: opening.row_bytes, durability })
    }

    fn begin(&self) -> Fallible<ReadTransaction> {
        Ok(match &self.handle {
            Handle::Writer(database) => database.begin_read()?,
            Handle::Reader(database) => database.begin_read()?,
        })
    }
}

impl Engine for Redb {
    fn load(&mut self, keys: &[u64], rows: &[u8]) -> Fallible {
        let Handle::Writer(database) = &self.handle else { return Err("opened for reading".into()) };
        let mut txn = database.begin_write()?;
        txn.set_durability(self.durability)?;
        let mut table = txn.open_table(ROWS)?;
        for (key, row) in rows::ascending_rows(keys, rows) {
            table.insert(key, row)?;
        }
        drop(table);
        Ok(txn.commit()?)
    }

    fn get_batch(&mut self, keys: &[u64], out: &mut [u8]) -> Fallible<usize> {
        let table = self.begin()?.open_table(ROWS)?;
        let mut found = 0;
        for (key, place) in keys.iter().zip(out.chunks_exact_mut(self.row_bytes)) {
            if let Some(row) = table.get(key)? {
                copy_row(row.value(), place)?;
                found += 1;
            }
        }
        Ok(found)
    }

    fn close(self: Box<Self>) -> Fallible {
        if let Handle::Writer(database) = &self.handle {
            let mut txn = database.begin_write()?;
            txn.set_durability(Durability::Immediate)?;
            txn.commit()?;
        }
        Ok(())
    }
}
