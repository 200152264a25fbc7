//! How freed memory returns to the system.

/// Makes glibc return freed blocks of a mebibyte or more to the system at once.
///
/// By default it keeps blocks of up to 32 MiB for reuse once one was freed. Every matrix is loaded through a
/// copy, so these blocks would add up and never return.
pub fn give_back_large_pieces() {
    #[cfg(target_env = "gnu")]
    {
        #[expect(unsafe_code, reason = "the allocator has no other interface")]
        // SAFETY: sets a threshold of the allocator, which takes any number and may be asked at any time.
        let set = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20) };
        // Using more memory than needed is no reason to stop.
        let _: libc::c_int = set;
    }
}
