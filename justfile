# Names for the commands that the repository has; each can be run without just.

# Lists the recipes.
default:
    @just --list

# Builds and starts coordinator, base and expert on this machine; --exit ends after the prompts.
demo *flags:
    deploy/demo {{flags}}

# Installs what the tests need; root where Debian's packages are missing.
setup *parts:
    tests/setup {{parts}}

# Everything that continuous integration runs, or the steps that are named (`just test lints unit`).
test *steps:
    tests/run {{ if steps == "" { "" } else { "--only " + steps } }}

# Format, lints and the tests inside the crates.
quick:
    tests/run --unit

# Format and lints.
lint:
    tests/run --only format lints

# Tests inside the crates; needs nothing but Rust.
unit *filter:
    cargo test --release --locked --workspace --lib --bins {{filter}}

# Tests of real processes; as root, for networks of their own.
end-to-end *filter:
    tests/setup etcd networks
    cargo build --release --locked --workspace --bins
    cargo test --release --locked --workspace --test '*' {{filter}}

# The OpenAI client's view, the demo pair's judge, manifests and monitoring.
python *arguments:
    tests/setup python promtool npm
    tests/.venv/bin/python -m pytest -q -rs tests/openai deploy/demo-pair tests/deploy {{arguments}}

# Writes the tables of docs/metrics.md and docs/configuration.md anew, from the programs.
docs:
    UPDATE_DOCS=1 cargo test --release --locked --workspace --test documentation

# Licences, bans and sources of all dependencies.
deny:
    tests/run --only deny

# Images, and a Pod of each; root on Debian.
images *flags:
    tests/images {{flags}}

# Every fault of a worker in every phase, on real processes; root.
faults:
    tests/faults

# Coordinators and fleets on virtual time under random schedules of faults.
simulate *arguments:
    tests/simulate {{arguments}}

# The readers of checkpoints, some seconds each.
fuzz *seconds:
    tests/fuzz {{seconds}}

# A worker compared with llama.cpp.
bench-worker *flags:
    tests/bench-worker {{flags}}

# Base alone, sequential and lookahead.
bench-lookahead *flags:
    tests/bench-lookahead {{flags}}

# 1x and 4x of capacity, kills.
bench-load *flags:
    tests/bench-load {{flags}}

# One coordinator before 200 mock workers.
bench-scale *flags:
    tests/bench-scale {{flags}}

# Kernels inside one process.
bench-kernels *arguments:
    cargo bench --package cosec-worker --bench kernels {{arguments}}

# How secure and how correct the code of a server is; docs/evaluation.md.
evaluate *arguments:
    tests/eval/run {{arguments}}

# Packs what tests/gpu needs; needs no GPU.
cuda-build:
    deploy/cuda-build

# Checks and measures a GPU in five minutes.
gpu *flags:
    tests/gpu {{flags}}
