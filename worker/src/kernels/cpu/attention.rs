//! Attention over the paged cache with a running softmax.
//!
//! A row goes through its keys in tiles counted from its first key, in ascending order; blocks only say where a key
//! is. So neither their size nor their order nor other rows change a bit of the result.

#![expect(clippy::needless_range_loop, reason = "iterators that are not inlined spill every register")]

use std::ops::Range;

use super::instruction_set::InstructionSet;
use super::memory::PagedMemory;
use super::simd8::{LANES, Simd8, Simd8Task, StoredFloat, dot_products, exp, multiply_add, sum};
use super::threads::{SharedSlice, ThreadPool};
use crate::kernels::{AttentionHeads, CacheShape, TokenPlace};

/// Keys whose scores are held at once.
const TILE: usize = 32;

/// Queries that go through the keys together, at most.
const TOGETHER: usize = 8;

/// Below this many multiplications one thread works alone.
const PARALLEL_FROM: usize = 1 << 15;

/// Queries of a batch.
#[derive(Clone, Copy)]
pub(super) struct QueryRows<'a> {
    pub(super) qkv: &'a [f32],
    pub(super) heads: AttentionHeads,
    pub(super) window: Option<usize>,
    pub(super) places: &'a [TokenPlace<'a>],
}

impl QueryRows<'_> {
    /// The first key that a row sees.
    fn first_key(&self, row: usize) -> usize {
        self.window.map_or(0, |window| (self.places[row].position + 1).saturating_sub(window))
    }

    /// Whether the tiles of two rows are the same keys as far as both see them.
    fn share_tiles(&self, row: usize, other: usize) -> bool {
        std::ptr::eq(self.places[row].blocks, self.places[other].blocks)
            && self.first_key(row) == self.first_key(other)
    }
}

/// Writes `[rows][heads][head_dim]`.
///
/// A task is some query heads that share a key head, for some consecutive rows: a read of the cache
/// serves all heads, and all rows of the same sequence.
pub(super) fn attend<W: StoredFloat>(
    (instructions, threads): (InstructionSet, &ThreadPool),
    rows: QueryRows<'_>,
    (shape, layer): (&CacheShape, usize),
    [keys, values]: &[PagedMemory<W>; 2],
    out: &mut [f32],
) {
    let QueryRows { heads, places, .. } = rows;
    let sharing = heads.query / heads.kv;
    let heads_together = (1..=TOGETHER).rev().find(|&count| sharing.is_multiple_of(count)).unwrap_or(1);
    let rows_together = TOGETHER / heads_together;
    let head_tasks = heads.query / heads_together;
    let out = SharedSlice::new(&mut out[..places.len() * heads.query_width()]);
    let task = |index: usize| {
        let head = index % head_tasks * heads_together;
        let mut row = index / head_tasks * rows_together;
        let end = places.len().min(row + rows_together);
        while row < end {
            let same = (row..end).take_while(|&other| rows.share_tiles(row, other)).count();
            let queries = QueryGroup { first_row: row, rows: same, first_head: head, heads: heads_together };
            instructions.run(AttendTask { of: &rows, queries, keys, values, shape, layer, out: &out });
            row += same;
        }
    };
    let tasks = places.len().div_ceil(rows_together) * head_tasks;
    let keys_read: usize = places.iter().map(|place| place.position + 1).sum();
    match keys_read * heads.query_width() {
        ..PARALLEL_FROM => (0..tasks).for_each(task),
        _ => threads.each(tasks, &task),
    }
}

/// Some heads, which share a key head, of some rows of one sequence; row by row.
#[derive(Clone, Copy)]
struct QueryGroup {
    first_row: usize,
    rows: usize,
    first_head: usize,
    heads: usize,
}

impl QueryGroup {
    #[inline(always)]
    fn row(&self, query: usize) -> usize {
        self.first_row + query / self.heads
    }

    #[inline(always)]
    fn head(&self, query: usize) -> usize {
        self.first_head + query % self.heads
    }
}

/// The attention of up to [`TOGETHER`] queries, whose tiles are the same keys.
struct AttendTask<'a, W> {
    of: &'a QueryRows<'a>,
    queries: QueryGroup,
    keys: &'a [W],
    values: &'a [W],
    shape: &'a CacheShape,
    layer: usize,
    out: &'a SharedSlice<'a, f32>,
}

/// A tile of keys with the queries' scores.
struct KeyTile {
    /// Offsets of the key head's keys (and values).
    offsets: [usize; TILE],
    /// How many of them each query sees, counted from the first.
    seen: [usize; TOGETHER],
    /// Scores, then weights; minus infinity, then zero, where a query sees no key.
    weights: [[f32; TILE]; TOGETHER],
}

impl<W: StoredFloat> Simd8Task for AttendTask<'_, W> {
    type Output = ();

    /// Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
    #[inline(always)]
    fn run<S: Simd8>(self, simd: S) {
        let Self { of, queries, .. } = self;
        let count = queries.rows * queries.heads;
        let sharing = of.heads.query / of.heads.kv;
        let kv_offset = queries.first_head / sharing * of.heads.width;
        let place = of.places[queries.first_row];
        let first = of.first_key(queries.first_row);
        let (mut max, mut total) = ([f32::NEG_INFINITY; TOGETHER], [0.0; TOGETHER]);
        let mut ends = [0; TOGETHER];
        for query in 0..count {
            ends[query] = of.places[queries.row(query)].position + 1;
            self.out(query).fill(0.0);
        }
        let end = ends.into_iter().fold(0, usize::max);
        for begin in (first..end).step_by(TILE) {
            let mut tile =
                KeyTile { offsets: [0; TILE], seen: [0; TOGETHER], weights: [[f32::NEG_INFINITY; TILE]; TOGETHER] };
            for query in 0..count {
                tile.seen[query] = ends[query].saturating_sub(begin).min(TILE);
            }
            for i in 0..TILE.min(end - begin) {
                let place = TokenPlace { position: begin + i, ..place };
                tile.offsets[i] = self.shape.offset(self.layer, place) + kv_offset;
            }
            let mut query = 0;
            while query < count {
                query += match count - query {
                    1 => self.scores::<1, 4, S>(simd, query, &mut tile),
                    2 | 3 => self.scores::<2, 4, S>(simd, query, &mut tile),
                    _ => self.scores::<4, 2, S>(simd, query, &mut tile),
                };
            }
            for query in 0..count {
                if tile.seen[query] > 0 {
                    let shrink = soften::<S>(&mut tile.weights[query], &mut max[query], &mut total[query]);
                    for out in self.out(query) {
                        *out *= shrink;
                    }
                }
            }
            let mut query = 0;
            while query < count {
                query += match count - query {
                    1 => self.add_values::<1, 4, S>(simd, query, &tile),
                    2 | 3 => self.add_values::<2, 4, S>(simd, query, &tile),
                    _ => self.add_values::<4, 2, S>(simd, query, &tile),
                };
            }
        }
        for query in 0..count {
            let total = total[query];
            for out in self.out(query) {
                *out /= total;
            }
        }
    }
}

impl<W: StoredFloat> AttendTask<'_, W> {
    /// The scores of `R` queries from `first` on, `C` keys at a time where all see them; returns `R`.
    #[inline(always)]
    fn scores<const R: usize, const C: usize, S: Simd8>(&self, simd: S, first: usize, tile: &mut KeyTile) -> usize {
        let seen_by_all = tile.seen_by_all::<R>(first);
        let whole = seen_by_all - seen_by_all % C;
        for i in (0..whole).step_by(C) {
            self.some_scores::<R, C, S>(simd, first, i, tile);
        }
        for query in first..first + R {
            for i in whole..tile.seen[query] {
                self.some_scores::<1, 1, S>(simd, query, i, tile);
            }
        }
        R
    }

    #[inline(always)]
    fn some_scores<const R: usize, const C: usize, S: Simd8>(
        &self,
        simd: S,
        first: usize,
        key: usize,
        tile: &mut KeyTile,
    ) {
        let AttentionHeads { width, .. } = self.of.heads;
        let (mut queries, mut keys): ([&[f32]; R], [&[W]; C]) = ([&[]; R], [&[]; C]);
        for r in 0..R {
            let (row, head) = (self.queries.row(first + r), self.queries.head(first + r));
            queries[r] = &self.of.qkv[row * self.of.heads.qkv_width() + head * width..][..width];
        }
        for c in 0..C {
            keys[c] = &self.keys[tile.offsets[key + c]..][..width];
        }
        let scale = 1.0 / (width as f32).sqrt();
        let dots = dot_products(simd, queries, keys);
        for r in 0..R {
            for c in 0..C {
                tile.weights[first + r][key + c] = dots[r][c] * scale;
            }
        }
    }

    /// `out += weights · values` for `R` queries from `first` on, the values in ascending order, `C` vectors of them at
    /// a time; returns `R`.
    #[inline(always)]
    fn add_values<const R: usize, const C: usize, S: Simd8>(&self, simd: S, first: usize, tile: &KeyTile) -> usize {
        let seen_by_all = tile.seen_by_all::<R>(first);
        let vectors = self.of.heads.width / LANES;
        let whole = vectors - vectors % C;
        for vector in (0..whole).step_by(C) {
            self.add_some::<R, C, S>(simd, first, vector, tile, 0..seen_by_all);
        }
        for vector in whole..vectors {
            self.add_some::<R, 1, S>(simd, first, vector, tile, 0..seen_by_all);
        }
        for query in first..first + R {
            if tile.seen[query] > seen_by_all {
                for vector in 0..vectors {
                    self.add_some::<1, 1, S>(simd, query, vector, tile, seen_by_all..tile.seen[query]);
                }
            }
            for (column, out) in self.out(query).iter_mut().enumerate().skip(vectors * LANES) {
                for i in 0..tile.seen[query] {
                    let value = self.values[tile.offsets[i] + column].widen();
                    *out = multiply_add::<S>(tile.weights[query][i], value, *out);
                }
            }
        }
        R
    }

    #[inline(always)]
    fn add_some<const R: usize, const C: usize, S: Simd8>(
        &self,
        simd: S,
        first: usize,
        vector: usize,
        tile: &KeyTile,
        keys: Range<usize>,
    ) {
        let mut sums = [[simd.zero(); C]; R];
        for r in 0..R {
            let out = &self.out(first + r).as_chunks::<LANES>().0[vector..][..C];
            for c in 0..C {
                sums[r][c] = simd.load_f32(&out[c]);
            }
        }
        for i in keys {
            let (values, _) = self.values[tile.offsets[i] + vector * LANES..][..C * LANES].as_chunks::<LANES>();
            let mut loaded = [simd.zero(); C];
            for c in 0..C {
                loaded[c] = W::load(simd, &values[c]);
            }
            for r in 0..R {
                let weight = simd.splat(tile.weights[first + r][i]);
                for c in 0..C {
                    sums[r][c] = simd.multiply_add(weight, loaded[c], sums[r][c]);
                }
            }
        }
        for r in 0..R {
            let out = &mut self.out(first + r).as_chunks_mut::<LANES>().0[vector..][..C];
            for c in 0..C {
                simd.store(sums[r][c], &mut out[c]);
            }
        }
    }

    /// The result of a query.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "see `Shares`")]
    fn out(&self, query: usize) -> &mut [f32] {
        let AttentionHeads { width, query: heads, .. } = self.of.heads;
        #[expect(unsafe_code, reason = "see `Shares`")]
        // SAFETY: `attend` gives every head of every row to exactly one task, and a task uses one part at a time.
        unsafe {
            self.out.part((self.queries.row(query) * heads + self.queries.head(query)) * width, width)
        }
    }
}

impl KeyTile {
    /// How many keys each of `R` queries from `first` on sees.
    #[inline(always)]
    fn seen_by_all<const R: usize>(&self, first: usize) -> usize {
        let mut seen = TILE;
        for r in 0..R {
            seen = seen.min(self.seen[first + r]);
        }
        seen
    }
}

/// Turns scores into weights relative to the largest score so far, which they may raise. Returns the factor by which
/// earlier weights shrink.
#[inline(always)]
fn soften<S: Simd8>(weights: &mut [f32; TILE], max: &mut f32, total: &mut f32) -> f32 {
    let mut new_max = *max;
    for i in 0..TILE {
        new_max = new_max.max(weights[i]);
    }
    let shrink = if new_max > *max { exp::<S>(*max - new_max) } else { 1.0 };
    *max = new_max;
    let mut lanes = [0.0; LANES];
    for weights in weights.as_chunks_mut::<LANES>().0 {
        for lane in 0..LANES {
            weights[lane] = exp::<S>(weights[lane] - new_max);
            lanes[lane] += weights[lane];
        }
    }
    *total = *total * shrink + sum(lanes);
    shrink
}
