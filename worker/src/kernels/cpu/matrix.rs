//! Matrices of weights: from tensors and files to panels, and rows of them back.

use candle_core::{DType, Tensor, WithDType};
use half::{bf16, f16};

use super::instruction_set::InstructionSet;
use super::linear::{PackedWeights, linear};
use super::memory::PagedMemory;
use super::packed_weights::{FloatPanel, PanelBlock, PanelFloat, Q4Panel, Q8Panel};
use super::simd16::PANEL;
use super::threads::ThreadPool;
use crate::kernels::blocks;
use crate::kernels::weight_format::BLOCK;
use crate::kernels::{KernelError, WeightFormat};

/// Rows that are packed at a time; whole panels.
const STRIP: usize = 64 * PANEL;

/// Weights `[outputs, inputs]`.
#[derive(Debug)]
pub struct CpuMatrix {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) panels: MatrixPanels,
}

/// The panels of a matrix, by format.
#[derive(Debug)]
pub(super) enum MatrixPanels {
    F32(PagedMemory<FloatPanel<f32>>),
    Bf16(PagedMemory<FloatPanel<bf16>>),
    F16(PagedMemory<FloatPanel<f16>>),
    Q8(PagedMemory<Q8Panel>),
    Q4(PagedMemory<Q4Panel>),
}

impl CpuMatrix {
    pub(super) fn new(weights: &Tensor, format: WeightFormat, threads: &ThreadPool) -> Result<Self, KernelError> {
        let (outputs, inputs) = weights.dims2().map_err(device)?;
        let panels = match format {
            WeightFormat::F32 => floats(weights, DType::F32, threads).map(MatrixPanels::F32),
            WeightFormat::Bf16 => floats(weights, DType::BF16, threads).map(MatrixPanels::Bf16),
            WeightFormat::F16 => floats(weights, DType::F16, threads).map(MatrixPanels::F16),
            WeightFormat::Q8_0 | WeightFormat::Q4K => {
                let blocks = blocks::quantise(weights, format)?;
                return Self::from_blocks(format, [outputs, inputs], &blocks, threads);
            }
        };
        Ok(Self { outputs, inputs, panels: panels? })
    }

    /// From a file's blocks, with the rows padded to whole ones.
    pub(super) fn from_blocks(
        format: WeightFormat,
        [outputs, inputs]: [usize; 2],
        blocks: &[u8],
        threads: &ThreadPool,
    ) -> Result<Self, KernelError> {
        let row_blocks = inputs.div_ceil(format.block().0);
        // Blocks after the last output are zero in every format.
        let panels = match format {
            WeightFormat::Q4K => panels(outputs, row_blocks, threads, |panel, block| {
                Q4Panel::pack(&std::array::from_fn(|lane| {
                    blocks::q4_k(stored(blocks, panel * PANEL + lane, row_blocks, block, outputs))
                }))
            })
            .map(MatrixPanels::Q4),
            _ => panels(outputs, row_blocks, threads, |panel, block| {
                Q8Panel::pack(&std::array::from_fn(|lane| {
                    blocks::q8_0(stored(blocks, panel * PANEL + lane, row_blocks, block, outputs))
                }))
            })
            .map(MatrixPanels::Q8),
        };
        Ok(Self { outputs, inputs, panels: panels? })
    }

    /// `out[rows][outputs] = x[rows][inputs] · selfᵀ + bias`.
    pub(super) fn linear(
        &self,
        on: (InstructionSet, &ThreadPool),
        x: (&[f32], usize),
        bias: Option<&[f32]>,
        out: (&mut [f32], &mut Vec<u32>),
    ) {
        let &Self { outputs, inputs, ref panels } = self;
        match panels {
            MatrixPanels::F32(blocks) => linear(on, x, PackedWeights { blocks, outputs, inputs }, bias, out),
            MatrixPanels::Bf16(blocks) => linear(on, x, PackedWeights { blocks, outputs, inputs }, bias, out),
            MatrixPanels::F16(blocks) => linear(on, x, PackedWeights { blocks, outputs, inputs }, bias, out),
            MatrixPanels::Q8(blocks) => linear(on, x, PackedWeights { blocks, outputs, inputs }, bias, out),
            MatrixPanels::Q4(blocks) => linear(on, x, PackedWeights { blocks, outputs, inputs }, bias, out),
        }
    }

    /// `out[i] = self[ids[i]]`.
    pub(super) fn embed(&self, ids: &[u32], out: &mut [f32]) {
        match &self.panels {
            MatrixPanels::F32(blocks) => embed(blocks, self.inputs, ids, out),
            MatrixPanels::Bf16(blocks) => embed(blocks, self.inputs, ids, out),
            MatrixPanels::F16(blocks) => embed(blocks, self.inputs, ids, out),
            MatrixPanels::Q8(blocks) => embed(blocks, self.inputs, ids, out),
            MatrixPanels::Q4(blocks) => embed(blocks, self.inputs, ids, out),
        }
    }
}

fn device(error: candle_core::Error) -> KernelError {
    KernelError::Device(error.to_string())
}

/// Converts and packs a strip of rows at a time: a second copy of the matrix would raise the peak memory.
fn floats<T: PanelFloat + WithDType>(
    weights: &Tensor,
    dtype: DType,
    threads: &ThreadPool,
) -> Result<PagedMemory<FloatPanel<T>>, KernelError> {
    let (outputs, inputs) = weights.dims2().map_err(device)?;
    let panel_blocks = inputs.div_ceil(BLOCK);
    let mut packed = PagedMemory::filled(outputs.div_ceil(PANEL) * panel_blocks, FloatPanel::ZERO)?;
    for (strip, to) in packed.chunks_mut(STRIP / PANEL * panel_blocks.max(1)).enumerate() {
        let first = strip * STRIP;
        let rows = STRIP.min(outputs - first);
        let strip = weights.narrow(0, first, rows).and_then(|strip| strip.to_dtype(dtype)?.flatten_all()?.to_vec1());
        let values: Vec<T> = strip.map_err(device)?;
        fill(to, panel_blocks, threads, |panel, block| {
            FloatPanel::pack(|lane, within| {
                let (row, input) = (panel * PANEL + lane, block * BLOCK + within);
                let inside = row < rows && input < inputs;
                if inside { values[row * inputs + input] } else { PanelFloat::ZERO }
            })
        });
    }
    Ok(packed)
}

/// Makes the blocks of all panels.
fn panels<B: PanelBlock>(
    outputs: usize,
    panel_blocks: usize,
    threads: &ThreadPool,
    block: impl Fn(usize, usize) -> B + Sync,
) -> Result<PagedMemory<B>, KernelError> {
    let mut blocks = PagedMemory::filled(outputs.div_ceil(PANEL) * panel_blocks, B::ZERO)?;
    fill(&mut blocks, panel_blocks, threads, block);
    Ok(blocks)
}

fn fill<B: PanelBlock>(
    blocks: &mut [B],
    panel_blocks: usize,
    threads: &ThreadPool,
    block: impl Fn(usize, usize) -> B + Sync,
) {
    threads.chunks(blocks, panel_blocks.max(1), true, |panel, blocks| {
        blocks.iter_mut().enumerate().for_each(|(index, to)| *to = block(panel, index));
    });
}

/// A block of a row, zeros beyond the last row.
fn stored<const BYTES: usize>(
    blocks: &[u8],
    row: usize,
    row_blocks: usize,
    block: usize,
    rows: usize,
) -> &[u8; BYTES] {
    match row < rows {
        true => &blocks.as_chunks().0[row * row_blocks + block],
        false => &[0; BYTES],
    }
}

fn embed<B: PanelBlock>(blocks: &[B], inputs: usize, ids: &[u32], out: &mut [f32]) {
    let panel_blocks = inputs.div_ceil(B::INPUTS);
    for (&id, out) in ids.iter().zip(out.chunks_exact_mut(inputs)) {
        let (panel, lane) = (id as usize / PANEL, id as usize % PANEL);
        let row = &blocks[panel * panel_blocks..][..panel_blocks];
        for (block, out) in row.iter().zip(out.chunks_mut(B::INPUTS)) {
            out.iter_mut().enumerate().for_each(|(input, out)| *out = block.weight(lane, input));
        }
    }
}
