//! `x · wᵀ`, which takes nearly all the time.
//!
//! Every element of the result is summed over the inputs in ascending order, in one chain, whatever else is computed
//! with it: neither other rows, nor threads, nor the division of the work change a bit.

#![expect(clippy::needless_range_loop, reason = "iterators that are not inlined spill every register")]

use super::activations::{GROUP, PackedRows, RowGroup, groups, pack};
use super::instruction_set::InstructionSet;
use super::packed_weights::PanelBlock;
use super::simd16::{PANEL, Simd16, Simd16Task};
use super::threads::{SharedSlice, ThreadPool};

/// Below this many multiplications waking other threads costs more than it saves.
const PARALLEL_FROM: usize = 1 << 17;

/// Bytes of weights per task when they are read once: enough to pay for scheduling it.
const TASK_BYTES: usize = 1 << 16;

/// Panels per task with many rows: they share the reads of the rows.
const TASK_PANELS: usize = 4;

/// Bytes of a panel's weights that stay in the L1 cache while groups of rows pass.
const PASS_BYTES: usize = 1 << 14;

/// Up to this many groups of rows pass panel by panel: their numbers stay in the L2 cache, and the weights are read
/// from first to last.
const FEW_GROUPS: usize = 4;

/// Blocks by which one of two groups is multiplied before the other.
const PAIR_BLOCKS: usize = 4;

/// Groups of rows whose numbers, with [`PASS_BYTES`], stay in the L2 cache while [`TASK_PANELS`] pass.
const PASS_GROUPS: usize = 16;

/// `[outputs, inputs]` in blocks: all of the first sixteen outputs, then all of the next.
#[derive(Clone, Copy)]
pub(super) struct PackedWeights<'a, B> {
    pub(super) blocks: &'a [B],
    pub(super) outputs: usize,
    pub(super) inputs: usize,
}

/// `out[rows][n] = x[rows][k] · weight[n][k]ᵀ + bias[n]`.
pub(super) fn linear<B: PanelBlock>(
    (instructions, threads): (InstructionSet, &ThreadPool),
    (x, rows): (&[f32], usize),
    weights: PackedWeights<'_, B>,
    bias: Option<&[f32]>,
    (out, words): (&mut [f32], &mut Vec<u32>),
) {
    let PackedWeights { blocks, outputs, inputs } = weights;
    let padded = inputs.next_multiple_of(B::INPUTS);
    let x = pack((instructions, threads), (x, rows), (inputs, padded), B::ARITHMETIC, words);
    let out = SharedSlice::new(&mut out[..rows * outputs]);
    let panel_blocks = padded / B::INPUTS;
    let task = |first: usize, count: usize| {
        let blocks = &blocks[first * panel_blocks..][..count * panel_blocks];
        instructions.run_panels(PanelProduct { x, rows, blocks, panel_blocks, first, outputs, bias, out });
    };
    let panels = outputs.div_ceil(PANEL);
    if rows * outputs * inputs < PARALLEL_FROM {
        return task(0, panels);
    }
    let size = match groups(rows).nth(FEW_GROUPS) {
        Some(_) => TASK_PANELS,
        None => (TASK_BYTES / (panel_blocks * size_of::<B>())).max(1),
    };
    let size = size.min(panels.div_ceil(threads.count()));
    threads.each(panels.div_ceil(size), &|index| task(index * size, size.min(panels - index * size)));
}

/// Some panels of the result, for all rows.
struct PanelProduct<'a, B> {
    x: PackedRows<'a>,
    rows: usize,
    /// Those of the panels from `first` on.
    blocks: &'a [B],
    panel_blocks: usize,
    first: usize,
    outputs: usize,
    bias: Option<&'a [f32]>,
    out: SharedSlice<'a, f32>,
}

/// The weights that one group is multiplied by at a time.
struct WeightTile<'a, B> {
    blocks: &'a [B],
    /// The index of the first within the panel.
    first_block: usize,
    /// The first output.
    column: usize,
    ahead: PrefetchAhead,
}

/// What each block of a tile prefetches while groups are multiplied: a share of the blocks after
/// those of the tile.
#[derive(Clone, Copy)]
struct PrefetchAhead {
    /// Bytes from the first block to the prefetched ones.
    offset: usize,
    /// Bytes that each block prefetches.
    share: usize,
}

impl PrefetchAhead {
    #[inline(always)]
    fn of<B>(blocks: &[B], (group, groups): (usize, usize)) -> Self {
        match groups {
            1 => Self { offset: AHEAD, share: size_of::<B>() },
            2..=FEW_GROUPS => {
                let share = size_of::<B>() / groups;
                Self { offset: size_of_val(blocks) + group * share * blocks.len(), share }
            }
            // Multiplying takes longer than reading.
            _ => Self { offset: 0, share: 0 },
        }
    }
}

impl<B: PanelBlock> Simd16Task for PanelProduct<'_, B> {
    // Loops, not closures: a closure is not compiled for its caller's instruction set.
    #[inline(always)]
    fn run<W: Simd16>(self, wide: W) {
        let count = groups(self.rows).count();
        if count == 2 {
            return self.run_pair(wide);
        }
        let pass_blocks = if count == 1 { self.panel_blocks } else { PASS_BYTES / size_of::<B>() };
        let together = if count > FEW_GROUPS { TASK_PANELS } else { 1 };
        let mut waiting = groups(self.rows).peekable();
        while waiting.peek().is_some() {
            let pass = waiting.clone().take(PASS_GROUPS);
            for (set, panels) in self.blocks.chunks(together * self.panel_blocks).enumerate() {
                for first_block in (0..self.panel_blocks).step_by(pass_blocks) {
                    for (panel, blocks) in panels.chunks_exact(self.panel_blocks).enumerate() {
                        let blocks = &blocks[first_block..self.panel_blocks.min(first_block + pass_blocks)];
                        let column = (self.first + set * together + panel) * PANEL;
                        for (index, group) in pass.clone().enumerate() {
                            let ahead = PrefetchAhead::of(blocks, (index, count));
                            let tile = WeightTile { blocks, first_block, column, ahead };
                            match group.rows {
                                1 => self.tile::<1, W>(wide, group, &tile),
                                2 => self.tile::<2, W>(wide, group, &tile),
                                3 => self.tile::<3, W>(wide, group, &tile),
                                4 => self.tile::<4, W>(wide, group, &tile),
                                5 => self.tile::<5, W>(wide, group, &tile),
                                _ => self.tile::<GROUP, W>(wide, group, &tile),
                            }
                        }
                    }
                }
            }
            waiting.nth(PASS_GROUPS - 1);
        }
    }
}

impl<B: PanelBlock> PanelProduct<'_, B> {
    /// Multiplies two groups by a few blocks at a time, while the next blocks are read.
    #[inline(always)]
    fn run_pair<W: Simd16>(self, wide: W) {
        for (panel, blocks) in self.blocks.chunks_exact(self.panel_blocks).enumerate() {
            let column = (self.first + panel) * PANEL;
            match self.rows - GROUP {
                1 => self.pair::<1, W>(wide, blocks, column),
                2 => self.pair::<2, W>(wide, blocks, column),
                3 => self.pair::<3, W>(wide, blocks, column),
                4 => self.pair::<4, W>(wide, blocks, column),
                5 => self.pair::<5, W>(wide, blocks, column),
                _ => self.pair::<GROUP, W>(wide, blocks, column),
            }
        }
    }

    /// A whole group and one of `R` rows.
    #[inline(always)]
    fn pair<const R: usize, W: Simd16>(&self, wide: W, blocks: &[B], column: usize) {
        let (mut totals, mut others) = ([wide.zero(); GROUP], [wide.zero(); R]);
        for first in (0..blocks.len()).step_by(PAIR_BLOCKS) {
            let end = blocks.len().min(first + PAIR_BLOCKS);
            for index in first..end {
                prefetch(blocks, AHEAD + index * size_of::<B>(), size_of::<B>());
                blocks[index].multiply(wide, &self.x, 0, index * B::INPUTS, &mut totals);
            }
            for index in first..end {
                blocks[index].multiply(wide, &self.x, GROUP, index * B::INPUTS, &mut others);
            }
        }
        self.put(wide, &totals, 0, column, self.bias);
        self.put(wide, &others, GROUP, column, self.bias);
    }

    /// Writes the results of rows from `first` on in a panel, with a bias.
    #[inline(always)]
    fn put<const R: usize, W: Simd16>(
        &self,
        wide: W,
        totals: &[W::Floats; R],
        first: usize,
        column: usize,
        bias: Option<&[f32]>,
    ) {
        let bias = bias.map_or(&[][..], |bias| &bias[column..]);
        for r in 0..R {
            let mut values = [0.0; PANEL];
            wide.store(totals[r], &mut values);
            for i in 0..bias.len().min(PANEL) {
                values[i] += bias[i];
            }
            let found = self.out(first + r, column);
            match found.first_chunk_mut() {
                Some(whole) => *whole = values,
                None => found.copy_from_slice(&values[..found.len()]),
            }
        }
    }

    #[inline(always)]
    fn tile<const R: usize, W: Simd16>(&self, wide: W, RowGroup { first, .. }: RowGroup, tile: &WeightTile<'_, B>) {
        let &WeightTile { blocks, first_block, column, ahead } = tile;
        let mut totals = [wide.zero(); R];
        if first_block > 0 {
            for r in 0..R {
                let mut values = [0.0; PANEL];
                let found = self.out(first + r, column);
                match found.first_chunk() {
                    Some(whole) => values = *whole,
                    None => values[..found.len()].copy_from_slice(found),
                }
                totals[r] = wide.load(&values);
            }
        }
        for index in 0..blocks.len() {
            prefetch(blocks, ahead.offset + index * ahead.share, ahead.share);
            blocks[index].multiply(wide, &self.x, first, (first_block + index) * B::INPUTS, &mut totals);
        }
        let is_whole = first_block + blocks.len() == self.panel_blocks;
        self.put(wide, &totals, first, column, self.bias.filter(|_| is_whole));
    }

    /// A row's results in the panel whose first output is `column`.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "see `Shares`")]
    fn out(&self, row: usize, column: usize) -> &mut [f32] {
        #[expect(unsafe_code, reason = "see `Shares`")]
        // SAFETY: `linear` gives every panel to exactly one task, and a task uses one part at a time.
        unsafe {
            self.out.part(row * self.outputs + column, PANEL.min(self.outputs - column))
        }
    }
}

/// Prefetch distance in bytes where one group passes.
const AHEAD: usize = 4096;

/// Prefetches `bytes` bytes, `offset` bytes after the beginning of `blocks`.
#[inline(always)]
#[cfg(target_arch = "x86_64")]
fn prefetch<B>(blocks: &[B], offset: usize, bytes: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    let at = blocks.as_ptr().cast::<i8>().wrapping_add(offset);
    for line in (0..bytes).step_by(64) {
        #[expect(unsafe_code, reason = "takes a pointer")]
        // SAFETY: an address that is not mapped is not fetched.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(line));
        }
    }
}

/// Other machines prefetch by themselves.
#[inline(always)]
#[cfg(not(target_arch = "x86_64"))]
fn prefetch<B>(_: &[B], _: usize, _: usize) {}
