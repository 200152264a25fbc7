//! A file in memory, of which only what is being read stays there.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::{Mmap, UncheckedAdvice};

/// A file that is mapped and only read.
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

    /// Gives back the memory of the whole pages in `range`. They can still be read: from the file again.
    pub fn release(&self, range: Range<usize>) {
        let start = range.start.next_multiple_of(PAGE_BYTES);
        let length = range.end.saturating_sub(start) / PAGE_BYTES * PAGE_BYTES;
        if length == 0 {
            return;
        }
        #[expect(unsafe_code, reason = "the call is unsafe for maps that are written or have no file")]
        // SAFETY: the map is backed by the file and never written, so that a page read again has the same bytes.
        let released = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, length) };
        // Memory that is kept longer than need be is no reason to stop.
        drop(released);
    }
}

/// Bytes of the largest pages in use; a range of whole large pages is one of whole small ones too.
const PAGE_BYTES: usize = 1 << 16;
