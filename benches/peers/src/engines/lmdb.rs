//! LMDB, through heed.
//!
//! Settings, from the documentation of `lmdb.h` (<http://www.lmdb.tech/doc/group__mdb.html>):
//!
//! - `mdb_env_set_mapsize`: "should be chosen as large as possible, to accommodate future growth of the database"; it
//!   costs address space only.
//! - `MDB_INTEGERKEY` (heed's `IntegerComparator`): keys of one size in native byte order.
//! - `MDB_APPEND`: "allows fast bulk loading when keys are already known to be in the correct order".
//! - `MDB_NOSYNC` for loads that need not survive power loss. According to the header, transactions then lose only
//!   durability if the file system preserves the order of writes and `MDB_WRITEMAP` is not used; therefore it is not.
//! - `MDB_NORDAHEAD` is left off: it is for databases larger than memory.

use heed::byteorder::NativeEndian;
use heed::types::{Bytes, U64};
use heed::{Database, Env, EnvFlags, EnvOpenOptions, IntegerComparator, PutFlags};

use super::copy_row;
use crate::Fallible;
use crate::engine::{Engine, Opening, Order};
use crate::rows;

type Rows = Database<U64<NativeEndian>, Bytes, IntegerComparator>;

/// One unnamed database.
pub struct Lmdb {
    env: Env,
    rows: Rows,
    row_bytes: usize,
    flags: PutFlags,
}

impl Lmdb {
    /// Creates the environment, or opens it for reading.
    ///
    /// # Errors
    /// Errors of LMDB.
    pub fn open(opening: &Opening, create: bool) -> Fallible<Self> {
        let mut options = EnvOpenOptions::new();
        options.map_size(1 << 38);
        let flags = match (create, opening.durable) {
            (false, _) => EnvFlags::READ_ONLY,
            (true, true) => EnvFlags::empty(),
            (true, false) => EnvFlags::NO_SYNC,
        };
        // SAFETY: the benchmark owns the folder and opens it once, and it may lose its data to power loss.
        let env = unsafe { options.flags(flags).open(&opening.dir)? };
        let rows = if create {
            let mut txn = env.write_txn()?;
            let rows = env.database_options().types().key_comparator().create(&mut txn)?;
            txn.commit()?;
            rows
        } else {
            let txn = env.read_txn()?;
            let rows = env.database_options().types().key_comparator().open(&txn)?;
            txn.commit()?;
            rows.ok_or("there is no database")?
        };
        let flags = if opening.order == Order::Sorted { PutFlags::APPEND } else { PutFlags::empty() };
        Ok(Self { env, rows, row_bytes: opening.row_bytes, flags })
    }
}

impl Engine for Lmdb {
    fn load(&mut self, keys: &[u64], rows: &[u8]) -> Fallible {
        let mut txn = self.env.write_txn()?;
        for (key, row) in rows::ascending_rows(keys, rows) {
            self.rows.put_with_flags(&mut txn, self.flags, &key, row)?;
        }
        Ok(txn.commit()?)
    }

    fn get_batch(&mut self, keys: &[u64], out: &mut [u8]) -> Fallible<usize> {
        let txn = self.env.read_txn()?;
        let mut found = 0;
        for (key, place) in keys.iter().zip(out.chunks_exact_mut(self.row_bytes)) {
            if let Some(row) = self.rows.get(&txn, key)? {
                copy_row(row, place)?;
                found += 1;
            }
        }
        Ok(found)
    }

    fn close(self: Box<Self>) -> Fallible {
        let reads_only = self.env.flags()?.is_some_and(|flags| flags.contains(EnvFlags::READ_ONLY));
        if !reads_only {
            self.env.force_sync()?;
        }
        self.env.prepare_for_closing().wait();
        Ok(())
    }
}
