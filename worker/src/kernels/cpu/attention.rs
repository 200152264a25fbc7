//! Attention over the paged cache with a running softmax.
//!
//! A row goes through its keys in tiles counted from its first key, in ascending order; blocks only say where a key
//! lies. So neither their size nor their order, nor the rows beside it, change a bit of the result.

use super::lanes::{Element, InstructionSet, LANES, Simd, Task, add_scaled, dot_products, exp, sum};
use super::threads::Threads;
use crate::kernels::{CacheShape, Heads, Place};

/// Keys whose scores are held at once.
const TILE: usize = 32;

/// Multiplications below which one thread works alone.
const PARALLEL_FROM: usize = 1 << 15;

/// Queries of a batch.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) qkv: &'a [f32],
    pub(super) heads: Heads,
    pub(super) window: Option<usize>,
    pub(super) places: &'a [Place<'a>],
}

/// Writes `[rows][heads][head_dim]`.
pub(super) fn attend<W: Element>(
    (instructions, threads): (InstructionSet, &Threads),
    rows: Rows<'_>,
    (shape, layer): (&CacheShape, usize),
    [keys, values]: &[Vec<W>; 2],
    out: &mut [f32],
) {
    let Rows { qkv, heads, window, places } = rows;
    let one_head = |index: usize, out: &mut [f32]| {
        let (row, head) = (index / heads.query, index % heads.query);
        let query = &qkv[row * heads.qkv_width() + head * heads.width..][..heads.width];
        let head_offset = head / (heads.query / heads.kv) * heads.width;
        let place = places[row];
        instructions.run(Attend { query, keys, values, shape, layer, place, head_offset, window, out });
    };
    let out = &mut out[..places.len() * heads.query_width()];
    let keys_read: usize = places.iter().map(|place| place.position + 1).sum();
    threads.chunks(out, heads.width, keys_read * heads.query_width() >= PARALLEL_FROM, one_head);
}

/// One query head of one row.
struct Attend<'a, W> {
    query: &'a [f32],
    keys: &'a [W],
    values: &'a [W],
    shape: &'a CacheShape,
    layer: usize,
    place: Place<'a>,
    /// Of the key head within a cached token.
    head_offset: usize,
    window: Option<usize>,
    out: &'a mut [f32],
}

impl<W: Element> Task for Attend<'_, W> {
    type Output = ();

    /// Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.query.len();
        let scale = 1.0 / (width as f32).sqrt();
        let end = self.place.position + 1;
        let first = self.window.map_or(0, |window| end.saturating_sub(window));
        let at = |position| self.shape.offset(self.layer, Place { position, ..self.place }) + self.head_offset;
        let (mut max, mut total) = (f32::NEG_INFINITY, 0.0);
        self.out.fill(0.0);
        for tile in (first..end).step_by(TILE) {
            let count = TILE.min(end - tile);
            let mut weights = [f32::NEG_INFINITY; TILE];
            for (i, weight) in weights.iter_mut().take(count).enumerate() {
                let key = &self.keys[at(tile + i)..][..width];
                let [[score]] = dot_products(simd, [self.query], [key]);
                *weight = score * scale;
            }
            let new_max = weights.iter().copied().fold(max, f32::max);
            if new_max > max {
                let shrink = exp::<S>(max - new_max);
                total *= shrink;
                self.out.iter_mut().for_each(|out| *out *= shrink);
                max = new_max;
            }
            let mut lanes = [0.0; LANES];
            for weights in weights.as_chunks_mut::<LANES>().0 {
                for lane in 0..LANES {
                    weights[lane] = exp::<S>(weights[lane] - max);
                    lanes[lane] += weights[lane];
                }
            }
            total += sum(lanes);
            for (i, &weight) in weights.iter().take(count).enumerate() {
                add_scaled(simd, weight, &self.values[at(tile + i)..][..width], self.out);
            }
        }
        self.out.iter_mut().for_each(|out| *out /= total);
    }
}
