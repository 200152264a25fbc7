//! How large the cache is, and whether it and the model fit into memory, before any weight is read.

use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;

/// Most sequences of full length that [`CacheSize::Auto`] makes room for: more than a batch can use, so that a small
/// model on a large machine does not claim half of it.
const MOST_CONTEXTS: u64 = 32;

/// Size of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheSize {
    /// Half of the memory that the weights leave, but room for one sequence of full length at least and 32 at most. One
    /// where the system does not tell its free memory.
    Auto,
    /// In MiB.
    MemoryMib(u64),
    /// In blocks.
    Blocks(usize),
}

/// Figures of a model that is about to be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Bytes of the weights in memory.
    pub weight_bytes: u64,
    /// Bytes that one cached token takes over all layers.
    pub kv_bytes_per_token: u64,
    /// Size of the KV cache.
    pub cache: CacheSize,
    /// Tokens of one block.
    pub block_tokens: u64,
    /// Longest sequence that the model was made for, in tokens.
    pub context_tokens: u64,
    /// Bytes of memory that can be had; `None` where the system does not say.
    pub available_bytes: Option<u64>,
}

impl MemoryPlan {
    /// Blocks of the KV cache.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.size().0
    }

    /// Bytes of the KV cache.
    #[must_use]
    pub fn kv_bytes(&self) -> u64 {
        self.cached_tokens().saturating_mul(self.kv_bytes_per_token)
    }

    /// Longest sequence that the model takes and the cache holds, in tokens.
    #[must_use]
    pub fn longest_context(&self) -> u64 {
        self.context_tokens.min(self.cached_tokens())
    }

    /// Checks that there is a cache, and that it and the weights fit.
    ///
    /// # Errors
    /// [`MemoryPlanError`] names the flag to change.
    pub fn check(&self) -> Result<(), MemoryPlanError> {
        let ((blocks, origin), block_bytes) = (self.size(), self.block_bytes());
        // Block ids are 32-bit numbers.
        if !(1..=u64::from(u32::MAX)).contains(&blocks) {
            return Err(MemoryPlanError::Blocks { blocks, origin, block_bytes });
        }
        let Some(available) = self.available_bytes else { return Ok(()) };
        let (weights_mib, available_mib) = (self.weight_bytes.div_ceil(MIB), available / MIB);
        let Some(room) = available.checked_sub(self.weight_bytes) else {
            return Err(MemoryPlanError::Weights { weights_mib, available_mib });
        };
        if self.kv_bytes() <= room {
            return Ok(());
        }
        Err(MemoryPlanError::Cache {
            weights_mib,
            available_mib,
            cache_mib: self.kv_bytes().div_ceil(MIB),
            blocks,
            origin,
            block_bytes,
            room_mib: room / MIB,
            room_blocks: room / block_bytes,
        })
    }

    /// Logs the figures.
    pub fn log(&self) {
        tracing::info!(
            weights_mib = self.weight_bytes.div_ceil(MIB),
            kv_cache_mib = self.kv_bytes().div_ceil(MIB),
            available_mib = self.available_bytes.map(|bytes| bytes / MIB),
            kv_bytes_per_token = self.kv_bytes_per_token,
            kv_cache_from = self.size().1,
            blocks = self.blocks(),
            block_tokens = self.block_tokens,
            cached_tokens = self.cached_tokens(),
            longest_context_tokens = self.longest_context(),
            "memory"
        );
    }

    /// Number of blocks in the KV cache, and the setting it follows from.
    fn size(&self) -> (u64, &'static str) {
        match self.cache {
            CacheSize::Blocks(blocks) => (blocks as u64, "--blocks"),
            CacheSize::MemoryMib(mib) => (mib.saturating_mul(MIB) / self.block_bytes(), "--kv-memory-mib"),
            CacheSize::Auto => {
                let context = self.context_tokens.div_ceil(self.block_tokens.max(1));
                let most = context.saturating_mul(MOST_CONTEXTS);
                let room = self.available_bytes.map_or(0, |available| available.saturating_sub(self.weight_bytes));
                match room / 2 / self.block_bytes() {
                    half if half < context => (context, "one sequence of full length"),
                    half if half > most => (most, "32 sequences of full length"),
                    half => (half, "half of the memory beside the weights"),
                }
            }
        }
    }

    fn block_bytes(&self) -> u64 {
        self.block_tokens.saturating_mul(self.kv_bytes_per_token).max(1)
    }

    fn cached_tokens(&self) -> u64 {
        self.blocks().saturating_mul(self.block_tokens)
    }
}

/// Bytes of memory that this process can still have: the system's, or the limit of its control group if that is lower.
#[must_use]
pub fn available_bytes() -> Option<u64> {
    let system = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_available(&text));
    let limits = group_limit_files().into_iter().filter_map(|file| std::fs::read_to_string(file).ok());
    // The limit "max" is no number.
    let group = limits.filter_map(|text| text.trim().parse().ok()).min();
    system.into_iter().chain(group).min()
}

fn mem_available(meminfo: &str) -> Option<u64> {
    let kib: u64 = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse().ok())?;
    kib.checked_mul(1024)
}

/// Limits of the control group and of those around it; the first version's own lies at a fixed place in a container.
fn group_limit_files() -> Vec<PathBuf> {
    let mut files = vec![PathBuf::from("/sys/fs/cgroup/memory/memory.limit_in_bytes")];
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    if let Some(group) = groups.lines().find_map(|line| line.strip_prefix("0::/")) {
        files.extend(
            Path::new(group).ancestors().map(|group| Path::new("/sys/fs/cgroup").join(group).join("memory.max")),
        );
    }
    files
}

/// Why a model cannot be loaded into the memory that there is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages and field names say it")]
pub enum MemoryPlanError {
    #[error("blocks is {blocks} ({block_bytes} bytes each, from {origin}); it must be 1 to 4294967295")]
    Blocks { blocks: u64, origin: &'static str, block_bytes: u64 },
    #[error(
        "the weights take {weights_mib} MiB, the memory available is {available_mib} MiB: \
         choose a smaller type with --quantize or --dtype, or a smaller model"
    )]
    Weights { weights_mib: u64, available_mib: u64 },
    #[error(
        "the weights take {weights_mib} MiB and the KV cache {cache_mib} MiB ({blocks} blocks of {block_bytes} bytes, \
         from {origin}), the memory available is {available_mib} MiB: set --kv-memory-mib to at most {room_mib} or --blocks to at most \
         {room_blocks}, or choose a smaller type with --kv-dtype, --quantize or --dtype"
    )]
    Cache {
        weights_mib: u64,
        available_mib: u64,
        cache_mib: u64,
        blocks: u64,
        origin: &'static str,
        block_bytes: u64,
        room_mib: u64,
        room_blocks: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights of 100 MiB, blocks of 1 MiB.
    const PLAN: MemoryPlan = MemoryPlan {
        weight_bytes: 100 * MIB,
        kv_bytes_per_token: MIB / 16,
        cache: CacheSize::Blocks(20),
        block_tokens: 16,
        context_tokens: 2048,
        available_bytes: Some(120 * MIB),
    };

    fn check(plan: MemoryPlan, expected: Result<(), &[&str]>) {
        match (plan.check(), expected) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(parts)) => {
                let message = error.to_string();
                assert!(parts.iter().all(|part| message.contains(part)), "{message:?} lacks one of {parts:?}");
            }
            (found, expected) => panic!("{plan:?}: {found:?}, not {expected:?}"),
        }
    }

    #[test]
    fn what_cannot_fit_is_refused() {
        check(PLAN, Ok(()));
        check(MemoryPlan { available_bytes: None, cache: CacheSize::Blocks(u32::MAX as usize), ..PLAN }, Ok(()));
        let cache =
            ["100 MiB", "21 MiB", "120 MiB", "--kv-memory-mib to at most 20", "--blocks to at most 20", "--kv-dtype"];
        check(MemoryPlan { cache: CacheSize::Blocks(21), ..PLAN }, Err(&cache));
        check(MemoryPlan { cache: CacheSize::MemoryMib(21), ..PLAN }, Err(&["21 MiB", "from --kv-memory-mib"]));
        check(MemoryPlan { available_bytes: Some(120 * MIB - 1), ..PLAN }, Err(&["at most 19 "]));
        check(
            MemoryPlan { available_bytes: Some(99 * MIB), ..PLAN },
            Err(&["weights take 100 MiB", "99 MiB", "--quantize"]),
        );
        let all = MemoryPlan { cache: CacheSize::Blocks(u32::MAX as usize), ..PLAN };
        check(MemoryPlan { kv_bytes_per_token: u64::MAX, ..all }, Err(&["--blocks to at most 0"]));
        check(MemoryPlan { weight_bytes: u64::MAX, ..PLAN }, Err(&["--dtype"]));
    }

    #[test]
    fn a_cache_has_blocks_and_not_too_many() {
        for blocks in [0, 1 << 32, usize::MAX] {
            check(
                MemoryPlan { cache: CacheSize::Blocks(blocks), ..PLAN },
                Err(&[&format!("blocks is {blocks} "), "--blocks"]),
            );
        }
        let large = MemoryPlan { cache: CacheSize::MemoryMib(1), block_tokens: 17, ..PLAN };
        check(large, Err(&["blocks is 0 (1114112 bytes each, from --kv-memory-mib)"]));
        check(
            MemoryPlan { context_tokens: u64::MAX, cache: CacheSize::Auto, ..PLAN },
            Err(&["blocks is ", "one sequence"]),
        );
    }

    /// Contexts of 100 tokens take 7 blocks of 1 MiB.
    #[test]
    fn a_cache_of_no_given_size_takes_half_of_what_is_free_within_bounds() {
        let auto = MemoryPlan { cache: CacheSize::Auto, context_tokens: 100, ..PLAN };
        let check_size = |available_mib: Option<u64>, expected: u64, origin: &str| {
            let plan = MemoryPlan { available_bytes: available_mib.map(|mib| mib * MIB), ..auto };
            assert_eq!((plan.blocks(), plan.size().1), (expected, origin), "{available_mib:?} MiB available");
            check(plan, Ok(()));
        };
        for (available_mib, half) in [(114, 7), (116, 8), (117, 8), (546, 223), (548, 224)] {
            check_size(Some(available_mib), half, "half of the memory beside the weights");
        }
        for available_mib in [550, 1 << 20] {
            check_size(Some(available_mib), 224, "32 sequences of full length");
        }
        for available_mib in [Some(107), Some(113), None] {
            check_size(available_mib, 7, "one sequence of full length");
        }
        let refusal = ["KV cache 7 MiB", "from one sequence of full length", "--kv-memory-mib to at most 6"];
        check(MemoryPlan { available_bytes: Some(107 * MIB - 1), ..auto }, Err(&refusal));
        check(MemoryPlan { available_bytes: Some(99 * MIB), ..auto }, Err(&["weights take 100 MiB"]));
    }

    #[test]
    fn the_longest_context_is_the_models_or_the_caches() {
        assert_eq!(PLAN.longest_context(), 320);
        assert_eq!(MemoryPlan { cache: CacheSize::Blocks(1000), ..PLAN }.longest_context(), 2048);
    }

    #[test]
    fn memory_is_read_as_linux_writes_it() {
        let text = "MemTotal:       24684096 kB\nMemFree:        12551080 kB\nMemAvailable:   21497560 kB\n";
        assert_eq!(mem_available(text), Some(21_497_560 * 1024));
        assert_eq!(mem_available("MemTotal: 3 kB"), None);
    }
}
