//! Attention over paged blocks: sequences with equally many new rows at once, padded to the longest.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops;

use super::super::{CacheShape, Heads, Place};
use super::indices;

/// What all layers need to know of the places of a batch, on the device.
#[derive(Debug)]
pub(super) struct Prepared {
    shape: CacheShape,
    runs: Vec<Run<Vec<u32>>>,
    /// Slot of each row, as often as a slot has elements: `[rows][2 · kv_width]`.
    slots: Tensor,
    /// By heads and window.
    plans: Vec<(Heads, Option<usize>, Plan)>,
}

/// Rows that stand one behind the other, in the batch and in one sequence, whose block table is `B`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run<B> {
    first_row: usize,
    position: usize,
    rows: usize,
    blocks: B,
}

/// How the rows of a batch are computed.
#[derive(Debug)]
struct Plan {
    groups: Vec<Group>,
    /// Where the groups' results, one behind the other, have the rows of the batch.
    order: Tensor,
}

/// Runs of equally many rows.
#[derive(Debug)]
struct Group {
    runs: usize,
    rows_each: usize,
    /// Cached tokens that the longest run sees.
    tokens: usize,
    /// Rows of the batch `[runs · rows_each]`.
    rows: Tensor,
    /// Slots of the cache `[runs · tokens]`.
    slots: Tensor,
    /// Zero for what a row sees and negative infinity for the rest: `[runs][1][rows_each][tokens]`.
    mask: Tensor,
}

impl Prepared {
    pub(super) fn new(places: &[Place<'_>], shape: CacheShape, device: &Device) -> Result<Self> {
        let width = 2 * shape.kv_width;
        let slots = indices(places.iter().map(|&place| slot(shape, place)), device)?;
        let slots = slots.unsqueeze(1)?.broadcast_as((places.len(), width))?.contiguous()?;
        let owned = |run: Run<&[u32]>| Run {
            first_row: run.first_row,
            position: run.position,
            rows: run.rows,
            blocks: run.blocks.to_vec(),
        };
        Ok(Self { shape, runs: runs(places).map(owned).collect(), slots, plans: Vec::new() })
    }

    /// Whether this was made for these places.
    pub(super) fn is_for(&self, places: &[Place<'_>], shape: CacheShape) -> bool {
        let known = self.runs.iter().map(|run| Run {
            first_row: run.first_row,
            position: run.position,
            rows: run.rows,
            blocks: run.blocks.as_slice(),
        });
        self.shape == shape && known.eq(runs(places))
    }

    pub(super) fn slots(&self) -> &Tensor {
        &self.slots
    }

    /// Attention of the queries in `qkv`, `[rows][qkv_width]`, over `cache`: `[rows][query_width]`.
    ///
    /// No tensor of it has more than about `elements`, unless a single row needs more.
    pub(super) fn attend(
        &mut self,
        qkv: &Tensor,
        heads: Heads,
        window: Option<usize>,
        cache: &Tensor,
        elements: usize,
    ) -> Result<Tensor> {
        let known = |(of, within, _): &(Heads, Option<usize>, Plan)| (*of, *within) == (heads, window);
        let index = match self.plans.iter().position(known) {
            Some(index) => index,
            None => {
                let plan = self.plan(heads, window, elements, qkv.device())?;
                self.plans.push((heads, window, plan));
                self.plans.len() - 1
            }
        };
        let Plan { groups, order } = &self.plans[index].2;
        let found = groups.iter().map(|group| group.attend(qkv, heads, cache)).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&found, 0)?.index_select(order, 0)
    }

    fn plan(&self, heads: Heads, window: Option<usize>, elements: usize, device: &Device) -> Result<Plan> {
        let mut pieces: Vec<Run<&[u32]>> = self.runs.iter().flat_map(|run| run.pieces(heads, elements)).collect();
        let tokens = |run: &Run<&[u32]>| run.end() - run.first_seen(window);
        // Those of about one length together, so that little is padded.
        pieces.sort_by(|a, b| a.rows.cmp(&b.rows).then(tokens(a).cmp(&tokens(b))));
        let mut groups = Vec::new();
        let mut rest = pieces.as_slice();
        while let Some(shortest) = rest.first() {
            let fits = |(index, run): &(usize, &Run<&[u32]>)| {
                let each = (run.rows * heads.query).max(2 * heads.kv_width());
                run.rows == shortest.rows && (*index == 0 || (index + 1) * tokens(run) * each <= elements)
            };
            let (group, others) = rest.split_at(rest.iter().enumerate().take_while(fits).count());
            groups.push(Group::new(group, self.shape, window, device)?);
            rest = others;
        }
        let rows: Vec<usize> = pieces.iter().flat_map(|run| run.first_row..run.first_row + run.rows).collect();
        let mut order = vec![0; rows.len()];
        rows.iter().enumerate().for_each(|(computed, &row)| order[row] = computed);
        Ok(Plan { groups, order: indices(order, device)? })
    }
}

impl<B> Run<B> {
    /// Tokens of the sequence up to the last of these rows.
    fn end(&self) -> usize {
        self.position + self.rows
    }

    /// The first position that one of the rows sees.
    fn first_seen(&self, window: Option<usize>) -> usize {
        window.map_or(0, |window| (self.position + 1).saturating_sub(window))
    }
}

impl Run<Vec<u32>> {
    /// The run in pieces whose scores have at most about `elements`.
    fn pieces(&self, heads: Heads, elements: usize) -> impl Iterator<Item = Run<&[u32]>> {
        let most = (elements / (heads.query * self.end()).max(1)).max(1);
        (0..self.rows).step_by(most).map(move |skipped| Run {
            first_row: self.first_row + skipped,
            position: self.position + skipped,
            rows: most.min(self.rows - skipped),
            blocks: self.blocks.as_slice(),
        })
    }
}

impl Group {
    fn new(runs: &[Run<&[u32]>], shape: CacheShape, window: Option<usize>, device: &Device) -> Result<Self> {
        let rows_each = runs.first().map_or(0, |run| run.rows);
        let tokens = runs.iter().map(|run| run.end() - run.first_seen(window)).max().unwrap_or(0);
        let (mut slots, mut positions) = (Vec::new(), Vec::new());
        let (mut firsts, mut lasts) = (Vec::new(), Vec::new());
        for run in runs {
            let seen = run.first_seen(window);
            for position in seen..seen + tokens {
                // Padding repeats a token of the sequence itself: a number that is none stays with its sequence.
                let within = Place { position: position.min(run.end() - 1), blocks: run.blocks };
                slots.push(slot(shape, within));
                // Behind every row of the run, and so masked, when it is padding.
                positions.push(position);
            }
            for position in run.position..run.end() {
                lasts.push(position);
                firsts.push(window.map_or(0, |window| (position + 1).saturating_sub(window)));
            }
        }
        let of_rows = |values| indices(values, device)?.reshape((runs.len(), 1, rows_each, 1));
        let positions = indices(positions, device)?.reshape((runs.len(), 1, 1, tokens))?;
        let unseen = positions.broadcast_gt(&of_rows(lasts)?)?.add(&positions.broadcast_lt(&of_rows(firsts)?)?)?;
        let constant = |value: f32| Tensor::new(value, device)?.broadcast_as(unseen.shape());
        Ok(Self {
            runs: runs.len(),
            rows_each,
            tokens,
            rows: indices(runs.iter().flat_map(|run| run.first_row..run.first_row + run.rows), device)?,
            slots: indices(slots, device)?,
            mask: unseen.where_cond(&constant(f32::NEG_INFINITY)?, &constant(0.0)?)?,
        })
    }

    /// `[runs · rows_each][query_width]`.
    fn attend(&self, qkv: &Tensor, heads: Heads, cache: &Tensor) -> Result<Tensor> {
        let &Self { runs, rows_each, tokens, .. } = self;
        let (kv, width, shared) = (heads.kv, heads.width, heads.query / heads.kv);
        let queries = qkv.index_select(&self.rows, 0)?.narrow(1, 0, heads.query_width())?;
        // A key head with the queries of all rows that share it.
        let queries = queries.reshape((runs, rows_each, kv, shared, width))?.permute((0, 2, 3, 1, 4))?;
        let queries = (queries.reshape((runs, kv, shared * rows_each, width))? / (width as f64).sqrt())?;
        let cached = cache.index_select(&self.slots, 0)?.reshape((runs, tokens, 2, kv, width))?;
        let cached = cached.permute((2, 0, 3, 1, 4))?.to_dtype(DType::F32)?.contiguous()?;
        let (keys, values) = (cached.get(0)?, cached.get(1)?);
        let scores = queries.matmul(&keys.t()?)?.reshape((runs, heads.query, rows_each, tokens))?;
        let weights = ops::softmax_last_dim(&scores.broadcast_add(&self.mask)?)?;
        let found = weights.reshape((runs, kv, shared * rows_each, tokens))?.matmul(&values)?;
        let found = found.reshape((runs, kv, shared, rows_each, width))?.permute((0, 3, 1, 2, 4))?;
        found.reshape((runs * rows_each, heads.query_width()))
    }
}

/// The places as runs.
fn runs<'a>(places: &'a [Place<'a>]) -> impl Iterator<Item = Run<&'a [u32]>> {
    let mut first_row = 0;
    let follows = |a: &Place<'_>, b: &Place<'_>| b.position == a.position + 1 && std::ptr::eq(a.blocks, b.blocks);
    places.chunk_by(follows).map(move |run| {
        let (position, blocks) = run.first().map_or((0, [].as_slice()), |place| (place.position, place.blocks));
        let run = Run { first_row, position, rows: run.len(), blocks };
        first_row += run.rows;
        run
    })
}

/// Where the token of a place lies among those of its layer.
fn slot(shape: CacheShape, place: Place<'_>) -> usize {
    shape.offset(0, place) / shape.kv_width
}
