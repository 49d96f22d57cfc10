//! The share of a folder's files that is in the page cache. It shows whether reads had to wait for the disk.
#![expect(unsafe_code, reason = "mincore takes a raw address")]

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::Fallible;

const PAGE: usize = 4096;

/// The share of the pages of all files in `folder` that are in memory; 1 if there are none.
pub(crate) fn resident_share(folder: &Path) -> Fallible<f64> {
    let (mut resident, mut all) = (0, 0);
    for entry in std::fs::read_dir(folder)? {
        let file = File::open(entry?.path())?;
        if file.metadata()?.len() == 0 {
            continue;
        }
        // SAFETY: the map is not read; it only identifies pages of the file.
        let map = unsafe { Mmap::map(&file)? };
        let mut pages = vec![0_u8; map.len().div_ceil(PAGE)];
        // SAFETY: the map has this length and starts at a page boundary, and `pages` has a byte for each of its pages.
        let failed = unsafe { libc::mincore(map.as_ptr().cast_mut().cast(), map.len(), pages.as_mut_ptr()) };
        if failed != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        resident += pages.iter().filter(|page| **page & 1 != 0).count();
        all += pages.len();
    }
    Ok(if all == 0 { 1.0 } else { resident as f64 / all as f64 })
}
