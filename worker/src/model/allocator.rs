//! How freed memory goes back to the machine.

/// Gives back at once what is freed in pieces of a mebibyte or more; where the C library is glibc.
///
/// Left to itself it keeps pieces of up to 32 MiB for later ones once one of them was freed. Every matrix is loaded through a
/// copy, so what is kept between them adds up and never goes back.
pub fn give_back_large_pieces() {
    #[cfg(target_env = "gnu")]
    {
        #[expect(unsafe_code, reason = "the allocator has no other interface")]
        // SAFETY: sets a threshold of the allocator, which takes any number and may be asked at any time.
        let set = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20) };
        // More memory than need be is no reason to stop.
        let _: libc::c_int = set;
    }
}
