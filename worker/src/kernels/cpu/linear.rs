//! `x · wᵀ`: where nearly all the time goes.
//!
//! Every element of the result is summed over the inputs in ascending order, in one chain whatever else is computed
//! beside it: neither other rows, nor threads, nor the pieces that the work is cut into change a bit.

use super::activations::{Group, Packed, groups, pack};
use super::lanes::InstructionSet;
use super::panels::{Block, Multiply, UNPACKED};
use super::threads::{Shares, Threads};
use super::wide::{PANEL, PanelTask, Wide};

/// Multiplications below which waking other threads costs more than it saves.
const PARALLEL_FROM: usize = 1 << 17;

/// Weights of one task, in bytes, when they are read once: enough to pay for taking it up.
const TASK_BYTES: usize = 1 << 16;

/// Panels of one task when many rows pass: they share what is read of the rows.
const TASK_PANELS: usize = 4;

/// `[outputs, inputs]` in blocks: all of the first sixteen outputs, then all of the next.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a, B> {
    pub(super) blocks: &'a [B],
    pub(super) outputs: usize,
    pub(super) inputs: usize,
}

/// `out[rows][n] = x[rows][k] · weight[n][k]ᵀ + bias[n]`.
pub(super) fn linear<B: Block>(
    (instructions, threads): (InstructionSet, &Threads),
    (x, rows): (&[f32], usize),
    weights: Weights<'_, B>,
    bias: Option<&[f32]>,
    (out, words): (&mut [f32], &mut Vec<u32>),
) {
    let Weights { blocks, outputs, inputs } = weights;
    let padded = inputs.next_multiple_of(B::INPUTS);
    let x = pack((instructions, threads), (x, rows), (inputs, padded), B::ARITHMETIC, words);
    let out = Shares::new(&mut out[..rows * outputs]);
    let panel_blocks = padded / B::INPUTS;
    let task = |first: usize, count: usize| {
        let blocks = &blocks[first * panel_blocks..][..count * panel_blocks];
        instructions.run_panels(Panels { x, rows, blocks, panel_blocks, first, outputs, bias, out });
    };
    let panels = outputs.div_ceil(PANEL);
    if rows * outputs * inputs < PARALLEL_FROM {
        return task(0, panels);
    }
    let size = match groups(rows).nth(1) {
        Some(_) => TASK_PANELS,
        None => (TASK_BYTES / (panel_blocks * size_of::<B>())).max(1),
    };
    let size = size.min(panels.div_ceil(threads.count()));
    threads.each(panels.div_ceil(size), &|index| task(index * size, size.min(panels - index * size)));
}

/// Some panels of the result, for all rows.
struct Panels<'a, B> {
    x: Packed<'a>,
    rows: usize,
    /// Those of the panels from `first` on.
    blocks: &'a [B],
    panel_blocks: usize,
    first: usize,
    outputs: usize,
    bias: Option<&'a [f32]>,
    out: Shares<'a, f32>,
}

/// What a group of rows is multiplied with at once.
struct Tile<'a, M> {
    blocks: &'a [M],
    /// Inputs of a block.
    inputs: usize,
    /// Of the first block.
    first_input: usize,
    /// Whether these are the first and the last inputs.
    ends: (bool, bool),
    panel: usize,
}

impl<B: Block> PanelTask for Panels<'_, B> {
    // Loops, not closures: a closure is not compiled for the instructions of whoever calls it.
    #[inline(always)]
    fn run<W: Wide>(self, wide: W) {
        let panels = self.blocks.chunks_exact(self.panel_blocks).enumerate();
        let mut all = groups(self.rows);
        if let (Some(group), None) = (all.next(), all.next()) {
            for (panel, blocks) in panels {
                let tile = Tile { blocks, inputs: B::INPUTS, first_input: 0, ends: (true, true), panel };
                self.group(wide, group, &tile);
            }
            return;
        }
        let mut scratch = B::scratch();
        for first in (0..self.panel_blocks).step_by(UNPACKED / B::INPUTS) {
            for (panel, blocks) in panels.clone() {
                let blocks = &blocks[first..self.panel_blocks.min(first + UNPACKED / B::INPUTS)];
                let plain = &mut scratch.as_mut()[..blocks.len()];
                for index in 0..blocks.len() {
                    blocks[index].unpack(wide, &mut plain[index]);
                }
                let ends = (first == 0, first + blocks.len() == self.panel_blocks);
                let first_input = first * B::INPUTS;
                let tile = Tile { blocks: &*plain, inputs: B::INPUTS, first_input, ends, panel };
                for group in groups(self.rows) {
                    self.group(wide, group, &tile);
                }
            }
        }
    }
}

impl<B: Block> Panels<'_, B> {
    #[inline(always)]
    fn group<W: Wide, M: Multiply>(&self, wide: W, group: Group, tile: &Tile<'_, M>) {
        match group.places {
            1 => self.tile::<1, W, M>(wide, group, tile),
            2 => self.tile::<2, W, M>(wide, group, tile),
            4 => self.tile::<4, W, M>(wide, group, tile),
            _ => self.tile::<6, W, M>(wide, group, tile),
        }
    }

    #[inline(always)]
    fn tile<const R: usize, W: Wide, M: Multiply>(&self, wide: W, group: Group, tile: &Tile<'_, M>) {
        let column = (self.first + tile.panel) * PANEL;
        let columns = PANEL.min(self.outputs - column);
        let mut totals = [wide.zero(); R];
        let rows = group.rows.min(R);
        let (is_first, is_last) = tile.ends;
        if !is_first {
            for (r, total) in totals.iter_mut().enumerate().take(rows) {
                let mut values = [0.0; PANEL];
                values[..columns].copy_from_slice(self.out(group.first + r, column, columns));
                *total = wide.load(&values);
            }
        }
        for index in 0..tile.blocks.len() {
            let input = tile.first_input + index * tile.inputs;
            tile.blocks[index].multiply(wide, &self.x, group.first, input, &mut totals);
        }
        for (r, total) in totals.into_iter().enumerate().take(rows) {
            let mut values = [0.0; PANEL];
            wide.store(total, &mut values);
            if let (true, Some(bias)) = (is_last, self.bias) {
                values.iter_mut().zip(&bias[column..]).for_each(|(value, bias)| *value += bias);
            }
            self.out(group.first + r, column, columns).copy_from_slice(&values[..columns]);
        }
    }

    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "see `Shares`")]
    fn out(&self, row: usize, column: usize, columns: usize) -> &mut [f32] {
        #[expect(unsafe_code, reason = "see `Shares`")]
        // SAFETY: `linear` gives every panel to exactly one task, and a task uses one part at a time.
        unsafe {
            self.out.part(row * self.outputs + column, columns)
        }
    }
}
