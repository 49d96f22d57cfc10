//! SQLite, through rusqlite, built from its amalgamation.
//!
//! Settings, from its documentation:
//!
//! - `journal_mode=WAL` with `synchronous=FULL`: each transaction is durable when it returns; `synchronous=OFF`
//!   otherwise, which survives the end of the process (<https://sqlite.org/pragma.html#pragma_synchronous>).
//! - an `INTEGER PRIMARY KEY` is the rowid (<https://sqlite.org/rowidtable.html>), so there is one B-tree.
//! - `page_size` 16 KiB for rows of 3 KB: "a page size of 8192 or 16384 gives the best performance for large BLOB I/O"
//!   (<https://sqlite.org/intern-v-extern-blob.html>); the default of 4 KiB for small ones.
//! - `mmap_size` over the whole file (<https://sqlite.org/mmap.html>); by default SQLite maps at most 2 GiB of it, so
//!   the page cache is large enough for the data too.
//! - checkpoints every 1 GiB and at the end, not every 1,000 pages: few checkpoints and a large WAL are what the
//!   documentation advises for writing (<https://sqlite.org/wal.html#performance_considerations>).
//! - one transaction and one prepared statement per batch (<https://sqlite.org/faq.html#q19>).

use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::copy_row;
use crate::Fallible;
use crate::engine::{Engine, Opening};
use crate::rows;

/// One table.
pub struct Sqlite {
    connection: Connection,
    row_bytes: usize,
    writes: bool,
}

impl Sqlite {
    /// Creates the file, or opens it for reading.
    ///
    /// # Errors
    /// Errors of SQLite.
    pub fn open(opening: &Opening, create: bool) -> Fallible<Self> {
        let path = opening.dir.join("rows.sqlite");
        let access = if create {
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE
        } else {
            OpenFlags::SQLITE_OPEN_READ_ONLY
        };
        let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        let cache_kib = opening.cache_bytes() >> 10;
        connection.execute_batch(&format!("PRAGMA mmap_size = 1099511627776; PRAGMA cache_size = -{cache_kib};"))?;
        if create {
            let page = if opening.row_bytes < 1024 { 4096 } else { 16384 };
            let synchronous = if opening.durable { "FULL" } else { "OFF" };
            let wal_pages = (1 << 30) / page;
            connection.execute_batch(&format!(
                "PRAGMA page_size = {page}; PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous};
                 PRAGMA wal_autocheckpoint = {wal_pages}; CREATE TABLE rows (key INTEGER PRIMARY KEY, value BLOB NOT NULL);"
            ))?;
        }
        Ok(Self { connection, row_bytes: opening.row_bytes, writes: create })
    }
}

impl Engine for Sqlite {
    fn load(&mut self, keys: &[u64], rows: &[u8]) -> Fallible {
        let txn = self.connection.transaction()?;
        let mut insert = txn.prepare_cached("INSERT INTO rows VALUES (?1, ?2)")?;
        for (key, row) in rows::ascending_rows(keys, rows) {
            insert.execute((i64::try_from(key)?, row))?;
        }
        drop(insert);
        Ok(txn.commit()?)
    }

    fn get_batch(&mut self, keys: &[u64], out: &mut [u8]) -> Fallible<usize> {
        let txn = self.connection.transaction()?;
        let mut select = txn.prepare_cached("SELECT value FROM rows WHERE key = ?1")?;
        let mut found = 0;
        for (key, place) in keys.iter().zip(out.chunks_exact_mut(self.row_bytes)) {
            let copied = select
                .query_row([i64::try_from(*key)?], |row| Ok(copy_row(row.get_ref(0)?.as_blob()?, place)))
                .optional()?;
            if let Some(copied) = copied {
                copied?;
                found += 1;
            }
        }
        drop(select);
        txn.commit()?;
        Ok(found)
    }

    fn close(self: Box<Self>) -> Fallible {
        if self.writes {
            self.connection.execute_batch("PRAGMA synchronous = FULL;")?;
            self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        }
        self.connection.close().map_err(|(_, error)| error.into())
    }
}
