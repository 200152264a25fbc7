//! Divides a batch's attention among thread blocks; see `attention.cu`.

use std::ops::Range;

use cudarc::driver::CudaSlice;

use super::driver::DeviceAddress;
use super::gpu::{GpuDevice, LaunchSize};
use crate::kernels::{AttentionHeads, CacheFormat, CacheShape, KernelError, RotaryLayout, RotaryPairs, TokenPlace};

/// Keys of a tile, and slots of a warp: a slot is a row and one of the query heads that share a key head.
const TILE: usize = 64;
const WARP_SLOTS: usize = 16;

/// Warps of a block that share its tiles.
const WARPS: usize = 4;

/// Most new rows of a sequence whose tiles are computed in parallel and stored; more rows fold them in registers.
const FEW_ROWS: usize = 16;

/// Most bytes of stored tiles at a time.
const PARTIAL_BYTES: usize = 256 << 20;

/// Widest head that the tensor-core kernels support.
const MOST_WIDTH: usize = 128;

/// Numbers of an item.
const ITEM: usize = 6;

/// The places of a batch on the GPU, shared by all layers.
pub(super) struct PreparedAttention {
    shape: CacheShape,
    heads: AttentionHeads,
    rows: usize,
    /// Identifies the places by their address on the host and the last one; they live while the batch runs.
    places: (usize, Option<(usize, usize)>),
    slots: DeviceAddress,
    positions: DeviceAddress,
    /// Per row: where its sequence begins in `tables`.
    row_tables: DeviceAddress,
    tables: DeviceAddress,
    /// Items with few slots, then those with many.
    items: DeviceAddress,
    many_items: Range<usize>,
    /// The rows with stored tiles, in the order of their items.
    few_rows: DeviceAddress,
    /// Parts of them that fit into [`PARTIAL_BYTES`].
    pieces: Vec<PartialPiece>,
}

/// Some of the rows with stored tiles.
#[derive(Clone, Debug)]
struct PartialPiece {
    rows: Range<usize>,
    items: Range<usize>,
    /// Tiles of the longest sequence.
    tiles: usize,
}

/// Keys and values of a layer.
#[derive(Clone, Copy)]
pub(super) struct CacheLayer {
    pub(super) shape: CacheShape,
    pub(super) keys: DeviceAddress,
    pub(super) values: DeviceAddress,
}

/// Consecutive new tokens of one sequence.
struct SequenceRun<'a> {
    first_row: usize,
    rows: usize,
    position: usize,
    blocks: &'a [u32],
}

impl PreparedAttention {
    pub(super) fn new(
        gpu: &GpuDevice,
        places: &[TokenPlace<'_>],
        shape: CacheShape,
        heads: AttentionHeads,
    ) -> Result<Self, KernelError> {
        let group = heads.query / heads.kv;
        let plainly = !takes_tensor_cores(shape, heads);
        let (mut slots, mut positions, mut row_tables, mut tables) = (vec![], vec![], vec![], vec![]);
        let (mut few, mut many, mut few_rows) = (vec![], vec![], vec![]);
        let mut pieces: Vec<PartialPiece> = Vec::new();
        for run in runs(places) {
            let table = tables.len() as u32;
            let last = run.position + run.rows - 1;
            tables.extend_from_slice(&run.blocks[..=last / shape.block_tokens]);
            for row in 0..run.rows {
                let place = TokenPlace { position: run.position + row, blocks: run.blocks };
                slots.push((shape.offset(0, place) / shape.kv_width) as u32);
                positions.push(place.position as u32);
                row_tables.push(table);
            }
            let is_few = plainly || run.rows <= FEW_ROWS;
            let span = if is_few { WARP_SLOTS } else { WARPS * WARP_SLOTS };
            let partial_row = few_rows.len();
            let items = (0..run.rows * group).step_by(span).map(|first_slot| {
                let end = (run.rows * group).min(first_slot + span);
                let position = |slot: usize| run.position + slot / group;
                [run.first_row, first_slot, end, position(first_slot), position(end - 1), partial_row]
            });
            let numbers = items.flatten().map(|number| number as u32);
            if is_few {
                few.extend(numbers);
                few_rows.extend((run.first_row..run.first_row + run.rows).map(|row| row as u32));
                let rows = partial_row..few_rows.len();
                take(&mut pieces, PartialPiece { rows, items: 0..few.len() / ITEM, tiles: last / TILE + 1 }, heads);
            } else {
                many.push(numbers.collect::<Vec<u32>>());
            }
        }
        // The last items of a sequence see most keys, so they start first.
        let few_items = few.len() / ITEM;
        few.extend(many.iter().flat_map(|items| items.chunks(ITEM).rev()).flatten());
        let many_items = few.len() / ITEM - few_items;
        // One upload; every part is aligned to 16 bytes.
        let mut all: Vec<u32> = Vec::new();
        let mut part = |numbers: &[u32]| {
            all.resize(all.len().next_multiple_of(4), 0);
            all.extend_from_slice(numbers);
            4 * (all.len() - numbers.len()) as u64
        };
        let offsets = [&slots, &positions, &row_tables, &tables, &few, &few_rows].map(|numbers| part(numbers));
        let [slots, positions, row_tables, tables, items, few_rows] = offsets;
        let base = gpu.upload(&all)?;
        Ok(Self {
            shape,
            heads,
            rows: places.len(),
            places: identity(places),
            slots: base + slots,
            positions: base + positions,
            row_tables: base + row_tables,
            tables: base + tables,
            items: base + items,
            many_items: few_items..few_items + many_items,
            few_rows: base + few_rows,
            pieces,
        })
    }

    pub(super) fn is_for(&self, places: &[TokenPlace<'_>], shape: CacheShape, heads: AttentionHeads) -> bool {
        (self.shape, self.heads) == (shape, heads) && self.rows == places.len() && self.places == identity(places)
    }

    /// Queues storing keys and values, after rotating queries and keys where there are angles.
    pub(super) fn append(
        &self,
        gpu: &GpuDevice,
        qkv: DeviceAddress,
        layer: CacheLayer,
        rotary: Option<(RotaryLayout, DeviceAddress)>,
    ) {
        let AttentionHeads { query, kv, width } = self.heads;
        let (turning, pairs, angles) =
            rotary.map_or((0, RotaryPairs::Halves, 0), |(layout, angles)| (layout.width, layout.pairs, angles));
        let arguments = [
            qkv,
            self.slots,
            layer.keys,
            layer.values,
            number(self.shape.format),
            query as u64,
            kv as u64,
            width as u64,
            angles,
            turning as u64,
            u64::from(pairs == RotaryPairs::Neighbours),
        ];
        gpu.launch("append", LaunchSize::pairs(self.rows, (query + 2 * kv) * width.div_ceil(2)), &arguments);
    }

    /// Queues attention. `out` and `rounded` are `[rows][heads][width]`.
    pub(super) fn attend(
        &self,
        gpu: &GpuDevice,
        (qkv, window): (DeviceAddress, Option<usize>),
        layer: CacheLayer,
        (out, rounded, rounding): (DeviceAddress, DeviceAddress, u64),
        partial: &mut Option<CudaSlice<f32>>,
    ) -> Result<(), KernelError> {
        let AttentionHeads { query, kv, width } = self.heads;
        let window = window.unwrap_or(0) as u64;
        let scale = u64::from((1.0 / (width as f64).sqrt() as f32).to_bits());
        let queries = [qkv, self.positions, self.row_tables, query as u64, kv as u64, width as u64, window, scale];
        let cached = [layer.keys, layer.values, self.tables, self.shape.block_tokens as u64];
        let tile_bytes = 4 * TILE as u32 * padded(width) as u32;
        let format = self.shape.format;
        if !self.many_items.is_empty() {
            let items = self.items + (4 * ITEM * self.many_items.start) as u64;
            let arguments = [&[items], &queries[..], &cached, &[out, rounded, rounding]].concat();
            let blocks = [self.many_items.len() as u32, kv as u32, 1];
            let size = LaunchSize { blocks, threads: 32 * WARPS as u32, shared_bytes: 2 * tile_bytes };
            gpu.launch(names(format, width)[1], size, &arguments);
        }
        for PartialPiece { rows, items, tiles } in &self.pieces {
            let elements = rows.len() * query * tiles * (width + 2);
            let memory = match partial.take() {
                Some(memory) if memory.len() >= elements => memory,
                _ => gpu.allocate(elements)?,
            };
            let written = gpu.address(partial.insert(memory));
            let of_piece = self.few_rows + 4 * rows.start as u64;
            if takes_tensor_cores(self.shape, self.heads) {
                // Several blocks per processor, so that one fetches tiles while another computes.
                let warps = 2;
                let first_item = self.items + (4 * ITEM * items.start) as u64;
                let arguments =
                    [&[first_item], &queries[..], &cached, &[written, rows.start as u64, *tiles as u64]].concat();
                let blocks = [items.len() as u32, kv as u32, (*tiles as u32).div_ceil(warps)];
                let size = LaunchSize { blocks, threads: 32 * warps, shared_bytes: warps * tile_bytes };
                gpu.launch(names(format, width)[0], size, &arguments);
            } else {
                let arguments =
                    [&[of_piece], &queries[..], &cached, &[number(format), written, *tiles as u64]].concat();
                let blocks = [(rows.len() * query) as u32, 1, tiles.div_ceil(WARPS) as u32];
                let size = LaunchSize { blocks, threads: 32 * WARPS as u32, shared_bytes: 0 };
                gpu.launch("attend_plainly", size, &arguments);
            }
            let arguments = [
                of_piece,
                written,
                self.positions,
                query as u64,
                width as u64,
                window,
                out,
                rounded,
                rounding,
                *tiles as u64,
            ];
            gpu.launch("combine_tiles", LaunchSize::rows(rows.len() * query, padded(width) as u32), &arguments);
        }
        Ok(())
    }
}

/// Adds the rows of a run, whose items are the last ones, to the last piece or to a new one.
fn take(pieces: &mut Vec<PartialPiece>, run: PartialPiece, heads: AttentionHeads) {
    let bytes = |rows: usize, tiles: usize| 4 * rows * heads.query * tiles * (heads.width + 2);
    let first_item = pieces.last().map_or(0, |piece| piece.items.end);
    if let Some(last) = pieces.last_mut() {
        let (rows, tiles) = (last.rows.start..run.rows.end, last.tiles.max(run.tiles));
        if bytes(rows.len(), tiles) <= PARTIAL_BYTES {
            *last = PartialPiece { rows, items: last.items.start..run.items.end, tiles };
            return;
        }
    }
    // The few rows of one run stay together.
    pieces.push(PartialPiece { items: first_item..run.items.end, ..run });
}

fn identity(places: &[TokenPlace<'_>]) -> (usize, Option<(usize, usize)>) {
    let last = places.last().map(|place| (place.position, place.blocks.as_ptr().addr()));
    (places.as_ptr().addr(), last)
}

/// Splits the places into runs.
fn runs<'a>(places: &'a [TokenPlace<'a>]) -> impl Iterator<Item = SequenceRun<'a>> {
    let mut first_row = 0;
    let follows =
        |a: &TokenPlace<'_>, b: &TokenPlace<'_>| b.position == a.position + 1 && std::ptr::eq(a.blocks, b.blocks);
    places.chunk_by(follows).map(move |run| {
        let (position, blocks) = run.first().map_or((0, [].as_slice()), |place| (place.position, place.blocks));
        let run = SequenceRun { first_row, rows: run.len(), position, blocks };
        first_row += run.rows;
        run
    })
}

/// Whether tensor cores can be used: a cache of 16 bits, and heads in whole chunks of 16 bytes.
fn takes_tensor_cores(shape: CacheShape, heads: AttentionHeads) -> bool {
    shape.format != CacheFormat::F32 && heads.width <= MOST_WIDTH && heads.width.is_multiple_of(8)
}

/// The padded width of a head.
fn padded(width: usize) -> usize {
    if width <= 64 { 64 } else { MOST_WIDTH }
}

/// Names of the kernels for few and for many slots.
fn names(format: CacheFormat, width: usize) -> [&'static str; 2] {
    match (format, padded(width)) {
        (CacheFormat::F16, 64) => ["attend_tiles_64_f16", "attend_slots_64_f16"],
        (CacheFormat::F16, _) => ["attend_tiles_128_f16", "attend_slots_128_f16"],
        (_, 64) => ["attend_tiles_64_bf16", "attend_slots_64_bf16"],
        _ => ["attend_tiles_128_bf16", "attend_slots_128_bf16"],
    }
}

/// Its number in the CUDA source.
fn number(format: CacheFormat) -> u64 {
    match format {
        CacheFormat::F32 => 0,
        CacheFormat::Bf16 => 1,
        CacheFormat::F16 => 2,
    }
}
