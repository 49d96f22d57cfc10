//! Loads a plain file into large pages.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

/// Maps a file that nothing changes and no other process has mapped. It is read again into pages of 2 MiB if the system
/// has them, as [`tensorcask::Reader::preload`] does for a store.
pub(crate) fn map(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    file.sync_data()?;
    #[cfg(target_os = "linux")]
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    let map = crate::raw::map(path)?;
    #[cfg(target_os = "linux")]
    for advice in [memmap2::Advice::HugePage, memmap2::Advice::PopulateRead] {
        let _where_the_system_has_it = map.advise(advice);
    }
    // Under a hypervisor, the first access to memory that the disk wrote to faults as well.
    std::hint::black_box(map.iter().step_by(4096).map(|byte| u64::from(*byte)).sum::<u64>());
    Ok(map)
}
