//! The usual handwritten solution: a hash map of offsets over an append-only file.
//!
//! It has no checksums, does not recover a torn tail, and reads all headers when it is opened.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;

use hashbrown::HashMap;
use memmap2::Mmap;

use super::copy_row;
use crate::Fallible;
use crate::engine::{Engine, Opening};

const HEADER: usize = 12;

/// The file has records of key, length and value; the map leads from a key to (offset, length).
pub struct Bitcask {
    file: File,
    map: Option<Mmap>,
    index: HashMap<u64, (u64, u32)>,
    end: u64,
    row_bytes: usize,
    durable: bool,
    buffer: Vec<u8>,
}

impl Bitcask {
    /// Creates the file, or reads its headers and, if `mapped`, maps it.
    ///
    /// # Errors
    /// IO errors.
    pub fn open(opening: &Opening, create: bool, mapped: bool) -> Fallible<Self> {
        let path = opening.dir.join("rows.log");
        let file = if create { File::create_new(path)? } else { File::open(path)? };
        // SAFETY: the benchmark owns the file, and nothing changes it after the load.
        let map = if mapped && !create { Some(unsafe { Mmap::map(&file)? }) } else { None };
        let index = if create { HashMap::new() } else { read_index(&file)? };
        Ok(Self {
            file,
            map,
            index,
            end: 0,
            row_bytes: opening.row_bytes,
            durable: opening.durable,
            buffer: Vec::new(),
        })
    }
}

fn read_index(file: &File) -> Fallible<HashMap<u64, (u64, u32)>> {
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut index = HashMap::new();
    let mut offset = 0;
    let mut header = [0_u8; HEADER];
    loop {
        match reader.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(index),
            Err(error) => return Err(error.into()),
        }
        let [key @ .., a, b, c, d] = header;
        let len = u32::from_le_bytes([a, b, c, d]);
        offset += HEADER as u64;
        index.insert(u64::from_le_bytes(key), (offset, len));
        offset += u64::from(len);
        reader.seek_relative(i64::from(len))?;
    }
}

impl Engine for Bitcask {
    fn load(&mut self, keys: &[u64], rows: &[u8]) -> Fallible {
        self.buffer.clear();
        for (key, row) in keys.iter().zip(rows.chunks_exact(self.row_bytes)) {
            self.buffer.extend_from_slice(&key.to_le_bytes());
            self.buffer.extend_from_slice(&(row.len() as u32).to_le_bytes());
            self.buffer.extend_from_slice(row);
        }
        self.file.write_all(&self.buffer)?;
        if self.durable {
            self.file.sync_data()?;
        }
        for key in keys {
            self.index.insert(*key, (self.end + HEADER as u64, self.row_bytes as u32));
            self.end += (HEADER + self.row_bytes) as u64;
        }
        Ok(())
    }

    fn get_batch(&mut self, keys: &[u64], out: &mut [u8]) -> Fallible<usize> {
        let mut found = 0;
        for (key, place) in keys.iter().zip(out.chunks_exact_mut(self.row_bytes)) {
            let Some((offset, len)) = self.index.get(key) else { continue };
            match &self.map {
                Some(map) => {
                    let start = *offset as usize;
                    copy_row(map.get(start..start + *len as usize).ok_or("the file is too short")?, place)?;
                }
                None => self.file.read_exact_at(place, *offset)?,
            }
            found += 1;
        }
        Ok(found)
    }

    fn close(self: Box<Self>) -> Fallible {
        Ok(self.file.sync_all()?)
    }
}
