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
use heed::{Database, Env, EnvFlags, EnvOpenOptions, IntegerComparator, PutFlags, RoTxn, RwTxn};

use super::copy_row;
use crate::Fallible;
use crate::engine::{Engine, KeyForm, Opening, Order};
use crate::rows;

/// The table, by the type of its keys.
enum Rows {
    Number(Database<U64<NativeEndian>, Bytes, IntegerComparator>),
    Text(Database<Bytes, Bytes>),
}

impl Rows {
    fn create(env: &Env, keys: KeyForm) -> Fallible<Self> {
        let mut txn = env.write_txn()?;
        let rows = match keys {
            KeyForm::Number => {
                Self::Number(env.database_options().types().key_comparator().create(&mut txn)?)
            }
            KeyForm::Text => Self::Text(env.create_database(&mut txn, None)?),
        };
        txn.commit()?;
        Ok(rows)
    }

    fn open(env: &Env, keys: KeyForm) -> Fallible<Self> {
        let txn = env.read_txn()?;
        let rows = match keys {
            KeyForm::Number => env.database_options().types().key_comparator().open(&txn)?.map(Self::Number),
            KeyForm::Text => env.open_database(&txn, None)?.map(Self::Text),
        };
        txn.commit()?;
        rows.ok_or_else(|| "there is no database".into())
    }

    fn put(&self, txn: &mut RwTxn<'_>, flags: PutFlags, key: u64, row: &[u8]) -> Fallible {
        Ok(match self {
            Self::Number(rows) => rows.put_with_flags(txn, flags, &key, row)?,
            Self::Text(rows) => rows.put_with_flags(txn, flags, &rows::text(key), row)?,
        })
    }

    fn get<'a>(&self, txn: &'a RoTxn<'_>, key: u64) -> Fallible<Option<&'a [u8]>> {
        Ok(match self {
            Self::Number(rows) => rows.get(txn, &key)?,
            Self::Text(rows) => rows.get(txn, &rows::text(key))?,
        })
    }
}

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
        let rows = if create { Rows::create(&env, opening.keys)? } else { Rows::open(&env, opening.keys)? };
        let flags = if opening.order == Order::Sorted { PutFlags::APPEND } else { PutFlags::empty() };
        Ok(Self { env, rows, row_bytes: opening.row_bytes, flags })
    }
}

impl Engine for Lmdb {
    fn load(&mut self, keys: &[u64], rows: &[u8]) -> Fallible {
        let mut txn = self.env.write_txn()?;
        for (key, row) in rows::ascending_rows(keys, rows) {
            self.rows.put(&mut txn, self.flags, key, row)?;
        }
        Ok(txn.commit()?)
    }

    fn get_batch(&mut self, keys: &[u64], out: &mut [u8]) -> Fallible<usize> {
        let txn = self.env.read_txn()?;
        let mut found = 0;
        for (key, place) in keys.iter().zip(out.chunks_exact_mut(self.row_bytes)) {
            if let Some(row) = self.rows.get(&txn, *key)? {
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
