//! A mapped file of which only the pages being read stay in memory.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::{Mmap, UncheckedAdvice};

/// A file mapped for reading.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// When it cannot be opened or mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        #[expect(unsafe_code, reason = "the only way to map a file")]
        // SAFETY: nothing in this process writes the file. Another process that truncates a checkpoint while it is read
        // can end this one; copying every file first would double the memory of loading.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self { path: path.to_owned(), map })
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its content.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Releases the memory of all pages that `range` touches. Later reads load them from the file again.
    ///
    /// That includes pages shared with neighbouring ranges: otherwise one page would stay for each
    /// piece that is read.
    pub fn release(&self, range: Range<usize>) {
        let start = range.start / PAGE_BYTES * PAGE_BYTES;
        let length = range.end.next_multiple_of(PAGE_BYTES).min(self.map.len()).saturating_sub(start);
        if length == 0 {
            return;
        }
        #[expect(unsafe_code, reason = "the call is unsafe for maps that are written or have no file")]
        // SAFETY: the map is backed by the file and never written, so that a page read again has the same bytes.
        let released = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, length) };
        // Memory that stays longer than needed is no reason to stop.
        drop(released);
    }
}

/// Size of the largest folio of a file, which Linux maps as a whole when one byte of it is read.
const PAGE_BYTES: usize = 2 << 20;

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    /// KiB of the file that are in this process's memory.
    fn resident_kib(path: &Path) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut of_file = maps.lines().skip_while(|line| !line.ends_with(path.to_str().unwrap()));
        let resident = of_file.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        resident.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    }

    #[test]
    fn nothing_stays_of_what_was_read_in_pieces() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weights");
        std::fs::write(&path, vec![1u8; 3_000_000]).unwrap();
        let file = MappedFile::open(&path).unwrap();
        let read = |range: Range<usize>| file.bytes()[range].iter().map(|&byte| u64::from(byte)).sum::<u64>();
        assert_eq!(read(0..3_000_000), 3_000_000);
        assert!(resident_kib(&path) >= 2900);
        for start in (0..3_000_000).step_by(100_000) {
            assert_eq!(read(start..start + 100_000), 100_000);
            file.release(start..start + 100_000);
        }
        // What is mapped around a byte, 64 KiB, may reach back over the end of a page.
        assert!(resident_kib(&path) <= 64);
        assert_eq!(read(0..3_000_000), 3_000_000);
    }
}
