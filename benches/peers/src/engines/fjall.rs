//! fjall.
//!
//! Settings, from its documentation (<https://docs.rs/fjall>):
//!
//! - `cache_size`: "more [than a quarter of memory] if the data set fully fits into memory".
//! - keys in big-endian form, as the README advises for integers.
//! - `Keyspace::start_ingestion` for keys that come in order: "prefer this method over singular inserts or write
//!   batches/transactions for maximum bulk load speed". It is always durable when it ends.
//! - `with_kv_separation` for rows of at least its threshold of 1 KiB: "for large blob use cases".
//! - no compression: the crate is built without lz4.

use std::time::Duration;

use ::fjall::{Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode};

use super::copy_row;
use crate::Fallible;
use crate::engine::{Engine, Opening, Order};

/// One keyspace.
pub struct Fjall {
    database: Database,
    rows: Keyspace,
    row_bytes: usize,
    ingests: bool,
    mode: PersistMode,
    writes: bool,
}

impl Fjall {
    /// Opens the database.
    ///
    /// # Errors
    /// Errors of fjall.
    pub fn open(opening: &Opening, create: bool) -> Fallible<Self> {
        let database = Database::builder(&opening.dir).cache_size(opening.cache_bytes()).open()?;
        let separated = (opening.row_bytes >= 1024).then(KvSeparationOptions::default);
        let rows = database.keyspace("rows", || KeyspaceCreateOptions::default().with_kv_separation(separated))?;
        Ok(Self {
            database,
            rows,
            row_bytes: opening.row_bytes,
            ingests: opening.order == Order::Sorted,
            mode: if opening.durable { PersistMode::SyncData } else { PersistMode::Buffer },
            writes: create,
        })
    }
}

impl Engine for Fjall {
    fn load(&mut self, keys: &[u64], rows: &[u8]) -> Fallible {
        let pairs = keys.iter().map(|key| key.to_be_bytes()).zip(rows.chunks_exact(self.row_bytes));
        if self.ingests {
            let mut ingestion = self.rows.start_ingestion()?;
            for (key, row) in pairs {
                ingestion.write(key, row)?;
            }
            return Ok(ingestion.finish()?);
        }
        let mut batch = self.database.batch().durability(Some(self.mode));
        for (key, row) in pairs {
            batch.insert(&self.rows, key, row);
        }
        Ok(batch.commit()?)
    }

    fn get_batch(&mut self, keys: &[u64], out: &mut [u8]) -> Fallible<usize> {
        let mut found = 0;
        for (key, place) in keys.iter().zip(out.chunks_exact_mut(self.row_bytes)) {
            if let Some(row) = self.rows.get(key.to_be_bytes())? {
                copy_row(&row, place)?;
                found += 1;
            }
        }
        Ok(found)
    }

    fn close(self: Box<Self>) -> Fallible {
        if self.writes {
            self.database.persist(PersistMode::SyncAll)?;
            // Compactions start a moment after their cause.
            let mut quiet = 0;
            while quiet < 5 {
                std::thread::sleep(Duration::from_millis(10));
                let busy = self.database.active_compactions() > 0 || self.database.outstanding_flushes() > 0;
                quiet = if busy { 0 } else { quiet + 1 };
            }
        }
        Ok(())
    }
}
