//! RocksDB.
//!
//! Settings, from its wiki (<https://github.com/facebook/rocksdb/wiki>) and headers:
//!
//! - `OptimizeForPointLookup` ("if you don't need to keep the data sorted, i.e. you'll never use an iterator"): a hash
//!   index in blocks, Bloom filters of 10 bits a key, a block cache of the given size; here one in which the data fits.
//! - a HyperClockCache, "now generally recommended over LRUCache" (`cache.h`), for blocks.
//! - `IncreaseParallelism` (by default there is one background thread for flushes and compactions).
//! - BlobDB for rows of 3 KB ("large-value use cases"), with a blob cache; that cannot be a HyperClockCache.
//! - "Creating and Ingesting SST files" for keys that come in order: the fastest bulk load. It is always durable when
//!   it ends.
//! - otherwise, as the FAQ advises for loads: one writer, a `WriteBatch` per batch, a vector memtable,
//!   `PrepareForBulkLoad` ("all data will be in level 0 without any automatic compaction"), and a manual compaction
//!   after the load; `WriteOptions::sync` if durable.
//! - no compression: the values are random bits.
//! - reads with `MultiGet`.

use std::path::PathBuf;

use ::rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, CompactOptions, DB, DBCompressionType,
    DEFAULT_COLUMN_FAMILY_NAME, DataBlockIndexType, IngestExternalFileOptions, MemtableFactory, Options, SstFileWriter,
    WaitForCompactOptions, WriteBatch, WriteOptions,
};

use super::copy_row;
use crate::Fallible;
use crate::engine::{Engine, Opening, Order};

/// One column family.
pub struct Rocksdb {
    db: DB,
    options: Options,
    write: WriteOptions,
    row_bytes: usize,
    /// The folder of files that are written before they are ingested, if keys come in order.
    ingests: Option<PathBuf>,
    writes: bool,
}

fn options(opening: &Opening, create: bool) -> Options {
    let mut options = Options::default();
    options.create_if_missing(create);
    options.set_compression_type(DBCompressionType::None);
    options.increase_parallelism(std::thread::available_parallelism().map_or(2, |cores| cores.get() as i32));
    // The settings of OptimizeForPointLookup, spelt out because it would create its own cache. 0: "recommended and
    // default".
    let cache_bytes = opening.cache_bytes() as usize;
    let cache = Cache::new_hyper_clock_cache(cache_bytes, 0);
    let mut blocks = BlockBasedOptions::default();
    blocks.set_data_block_index_type(DataBlockIndexType::BinaryAndHash);
    blocks.set_data_block_hash_ratio(0.75);
    blocks.set_bloom_filter(10.0, false);
    blocks.set_block_cache(&cache);
    options.set_block_based_table_factory(&blocks);
    options.set_memtable_prefix_bloom_ratio(0.02);
    options.set_memtable_whole_key_filtering(true);
    if opening.row_bytes >= 1024 {
        options.set_enable_blob_files(true);
        options.set_min_blob_size(1024);
        options.set_blob_cache(&Cache::new_lru_cache(cache_bytes));
    }
    if create && opening.order == Order::Shuffled {
        options.prepare_for_bulk_load();
        options.set_memtable_factory(MemtableFactory::Vector);
        options.set_allow_concurrent_memtable_write(false);
    }
    options
}

impl Rocksdb {
    /// Creates the database, or opens it for reading.
    ///
    /// # Errors
    /// Errors of RocksDB.
    pub fn open(opening: &Opening, create: bool) -> Fallible<Self> {
        let options = options(opening, create);
        let path = opening.dir.join("db");
        // Opened by name, as `MultiGet` takes the handle of a family.
        let families = [ColumnFamilyDescriptor::new(DEFAULT_COLUMN_FAMILY_NAME, options.clone())];
        let db = if create {
            DB::open_cf_descriptors(&options, path, families)?
        } else {
            DB::open_cf_descriptors_read_only(&options, path, families, false)?
        };
        let mut write = WriteOptions::default();
        write.set_sync(opening.durable);
        let ingests = (opening.order == Order::Sorted).then(|| opening.dir.join("ingest.sst"));
        Ok(Self { db, options, write, row_bytes: opening.row_bytes, ingests, writes: create })
    }
}

impl Engine for Rocksdb {
    fn load(&mut self, keys: &[u64], rows: &[u8]) -> Fallible {
        let pairs = keys.iter().map(|key| key.to_be_bytes()).zip(rows.chunks_exact(self.row_bytes));
        if let Some(path) = &self.ingests {
            let mut writer = SstFileWriter::create(&self.options);
            writer.open(path)?;
            for (key, row) in pairs {
                writer.put(key, row)?;
            }
            writer.finish()?;
            let mut ingest = IngestExternalFileOptions::default();
            ingest.set_move_files(true);
            return Ok(self.db.ingest_external_file_opts(&ingest, vec![path])?);
        }
        let mut batch = WriteBatch::default();
        for (key, row) in pairs {
            batch.put(key, row);
        }
        Ok(self.db.write_opt(batch, &self.write)?)
    }

    fn get_batch(&mut self, keys: &[u64], out: &mut [u8]) -> Fallible<usize> {
        let family = self.db.cf_handle(DEFAULT_COLUMN_FAMILY_NAME).ok_or("there is no default column family")?;
        let asked: Vec<[u8; 8]> = keys.iter().map(|key| key.to_be_bytes()).collect();
        let rows = self.db.batched_multi_get_cf(&family, &asked, false);
        let mut found = 0;
        for (row, place) in rows.into_iter().zip(out.chunks_exact_mut(self.row_bytes)) {
            if let Some(row) = row? {
                copy_row(&row, place)?;
                found += 1;
            }
        }
        Ok(found)
    }

    fn close(self: Box<Self>) -> Fallible {
        if self.writes {
            self.db.flush()?;
            self.db.compact_range_opt::<&[u8], &[u8]>(None, None, &CompactOptions::default());
            self.db.wait_for_compact(&WaitForCompactOptions::default())?;
            self.db.flush_wal(true)?;
        }
        Ok(())
    }
}
