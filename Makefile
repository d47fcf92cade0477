# make demo          see it work: no root, no cloud, no Java
# make test          everything but the slow group
# make test-slow     the slow group
# make lint types    ruff and the import contracts; mypy --strict
# make lock          requirements.txt and constraints.txt anew, from pyproject.toml
# make clean         remove what the others made
#
# scripts/venv.sh makes the environment that each of them needs, once.
.PHONY: demo test test-slow lint types lock clean

demo:
	@venv=$$(scripts/venv.sh newest run) && exec "$$venv/bin/python" scripts/demo.py

test:
	@scripts/test.sh

test-slow:
	@scripts/test.sh slow

lint:
	@venv=$$(scripts/venv.sh tested) && "$$venv/bin/ruff" check . && "$$venv/bin/ruff" format --check . && "$$venv/bin/lint-imports"

types:
	@venv=$$(scripts/venv.sh tested) && exec "$$venv/bin/mypy"

lock:
	@scripts/lock.sh

clean:
	rm -rf .venv .venv-* .venv.lock .demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
