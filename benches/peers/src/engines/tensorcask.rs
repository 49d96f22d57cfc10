//! This project, with default options.

use ::tensorcask::{Dtype, Durability, Keys, Options, Reader, Store};

use crate::Fallible;
use crate::engine::{Engine, KeyForm, Opening};
use crate::rows;

const MODULE: &str = "peers";

enum Handle {
    Store(Store),
    Reader(Reader),
}

/// tensorcask; rows are `F32` tensors of one dimension.
pub struct Tensorcask {
    handle: Handle,
    shape: [usize; 1],
    durability: Durability,
    found: Vec<bool>,
    keys: KeyForm,
    /// The keys of a batch as text.
    texts: Vec<String>,
}

impl Tensorcask {
    /// Opens the store for writing, or as a reader.
    ///
    /// # Errors
    /// Errors of tensorcask.
    pub fn open(opening: &Opening, create: bool) -> Fallible<Self> {
        let handle = if create {
            Handle::Store(Options::new().open(&opening.dir, MODULE)?)
        } else {
            Handle::Reader(Options::new().open_reader(&opening.dir, MODULE)?)
        };
        let durability = if opening.durable { Durability::SyncData } else { Durability::Buffered };
        Ok(Self { handle, shape: [opening.row_bytes / 4], durability, found: Vec::new(), keys: opening.keys, texts: Vec::new() })
    }
}

impl Engine for Tensorcask {
    fn prepare(&mut self, keys: &[u64]) {
        if self.keys == KeyForm::Text {
            self.texts.clear();
            self.texts.extend(keys.iter().map(|key| String::from_utf8_lossy(&rows::text(*key)).into_owned()));
        }
    }

    fn place(&mut self, keys: &[u64]) -> Fallible {
        self.prepare(keys);
        Ok(())
    }

    fn load(&mut self, keys: &[u64], rows: &[u8]) -> Fallible {
        let Handle::Store(store) = &self.handle else { return Err("opened for reading".into()) };
        let keys: Keys<'_> = if self.keys == KeyForm::Text { (&self.texts).into() } else { keys.into() };
        store.put_rows_bytes(keys, Dtype::F32, &self.shape, rows)?;
        // `put` returns before anything is written; `Buffered` matches the guarantee of a plain write of the peers.
        Ok(store.flush_with(self.durability)?)
    }

    fn preload(&mut self) -> Fallible {
        if let Handle::Reader(reader) = &self.handle {
            reader.preload(u64::MAX)?;
        }
        Ok(())
    }

    fn get_batch(&mut self, keys: &[u64], out: &mut [u8]) -> Fallible<usize> {
        let reader = match &self.handle {
            Handle::Store(store) => store.reader(),
            Handle::Reader(reader) => reader,
        };
        self.found.resize(keys.len(), false);
        let keys: Keys<'_> = if self.keys == KeyForm::Text { (&self.texts).into() } else { keys.into() };
        Ok(reader.get_batch_into_bytes(keys, Dtype::F32, &self.shape, out, &mut self.found)?)
    }

    fn close(self: Box<Self>) -> Fallible {
        match self.handle {
            Handle::Store(store) => Ok(store.close()?),
            Handle::Reader(_) => Ok(()),
        }
    }
}
