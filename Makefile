# mmgpt: MultiModal-GPT inside PostgreSQL.
#
#	make			the engine and the extension
#	make engine		build/mmgpt-engine only; needs no PostgreSQL
#	make cuda		build/mmgpt_cuda.so for NVIDIA GPUs, with CUDA's compiler (CUDA=/usr/local/cuda);
#					make install takes it along
#	make test		everything, tested (SANITIZE=1: under address and undefined-behaviour sanitizers)
#	make install	into the server that PG_CONFIG names (DESTDIR is honoured)
#	make demo		a private server with pictures to ask about
#	make demo-model	train the demo model anew, from nothing
#
# Who may include whom is enforced here: each folder is compiled with the
# include paths of the folders below it and no others.

PG_CONFIG ?= pg_config
BUILD ?= build
CC ?= cc
CXX ?= c++
CFLAGS_COMMON := -O2 -g -std=c11 -D_GNU_SOURCE -fvisibility=hidden -Wall -Wextra -Wdeclaration-after-statement \
	-Wno-unused-parameter -Wvla -Wshadow -Wstrict-prototypes -fno-math-errno -pthread
ENGINE_LIBS := -lsentencepiece -ljpeg -lpng -ljansson -lseccomp -lm -lstdc++

ifdef SANITIZE
BUILD := build/sanitize
SANITIZER_FLAGS := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
CFLAGS_COMMON += $(SANITIZER_FLAGS)
endif

# requests may ask for faults (tests only)
ifdef FAULTS
BUILD := $(BUILD)/faults
CFLAGS_COMMON += -DMMGPT_FAULTS
endif

# include paths: what each folder may see
SEE_base := -Isrc/base
SEE_wire := $(SEE_base) -Isrc/wire
SEE_image := $(SEE_base) -Isrc/image
SEE_text := $(SEE_base) -Isrc/text
SEE_tensor := $(SEE_base) -Isrc/tensor
SEE_model := $(SEE_tensor) -Isrc/model
SEE_train := $(SEE_model) -Isrc/image -Isrc/text -Isrc/train
SEE_serve := $(SEE_train) -Isrc/wire -Isrc/serve
SEE_cli := $(SEE_serve) -Isrc/cli

ENGINE_FOLDERS := base wire image text tensor model train serve cli
ENGINE_SOURCES := $(foreach f,$(ENGINE_FOLDERS),$(wildcard src/$(f)/*.c)) src/text/sentencepiece_shim.cc
ENGINE_OBJECTS := $(patsubst src/%,$(BUILD)/%.o,$(ENGINE_SOURCES))

$(BUILD)/tensor/kernels_avx2.c.o: ISA_FLAGS := -mavx2 -mfma
AVX512_FLAGS := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mprefer-vector-width=512
$(BUILD)/tensor/kernels_avx512.c.o: ISA_FLAGS := $(AVX512_FLAGS)
$(BUILD)/tensor/kernels_avx512vnni.c.o: ISA_FLAGS := $(AVX512_FLAGS) -mavx512vnni
$(BUILD)/tensor/kernels_avx512bf16.c.o: ISA_FLAGS := $(AVX512_FLAGS) -mavx512vnni -mavx512bf16

.PHONY: engine
engine: $(BUILD)/mmgpt-engine

$(BUILD)/mmgpt-engine: $(ENGINE_OBJECTS)
	$(CC) $(SANITIZER_FLAGS) -pthread -o $@ $^ $(ENGINE_LIBS)

$(BUILD)/%.c.o: src/%.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_COMMON) $(ISA_FLAGS) -MMD -MP $(SEE_$(firstword $(subst /, ,$*))) -c -o $@ $<

$(BUILD)/%.cc.o: src/%.cc
	@mkdir -p $(@D)
	$(CXX) -O2 -g -std=c++17 -fvisibility=hidden -Wall -Wextra $(SANITIZER_FLAGS) -MMD -MP $(SEE_$(firstword $(subst /, ,$*))) -c -o $@ $<

-include $(ENGINE_OBJECTS:.o=.d)

# ---------------------------------------------------------------------------
# The CUDA library, and the same sources compiled for the host, which tests load.
#
#	make cuda				build/mmgpt_cuda.so, for sm_80, sm_90, sm_100 and what follows
#	make cuda-report		and what each of its kernels takes
#	make cuda-on-host		build/cuda_on_host/{plain,asan,race}/mmgpt_cuda.so; needs CUDA's headers and g++
# ---------------------------------------------------------------------------

CUDA ?= /usr/local/cuda
NVCC ?= $(CUDA)/bin/nvcc

SEE_cuda := -Isrc/base -Isrc/tensor
CUDA_SOURCES := $(wildcard cuda/*.cu)
# what the library shares with the engine, compiled once more for it
CUDA_SHARED := base/status base/utf8 tensor/tensor tensor/quantize tensor/sampling

# -fmad=false: what is fused is written so; else two kernels for the same sum could round differently
NVCC_FLAGS := -std=c++20 -O3 -fmad=false --extended-lambda -lineinfo -Werror all-warnings -Xfatbin -compress-all \
	-Xcompiler -Wall,-Wextra,-Wno-unused-parameter,-fPIC,-fvisibility=hidden \
	-Xptxas -v,-warn-spills,-warn-lmem-usage,-warn-double-usage \
	-gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 \
	-gencode arch=compute_100,code=[sm_100,compute_100]
CUDA_OBJECTS := $(patsubst cuda/%,build/cuda/%.o,$(CUDA_SOURCES))
CUDA_SHARED_OBJECTS := $(patsubst %,build/cuda/%.c.o,$(CUDA_SHARED))

.PHONY: cuda
cuda: build/mmgpt_cuda.so

# cuBLASLt is opened when a device was found, often where only CUDA's own folder has it
build/mmgpt_cuda.so: $(CUDA_OBJECTS) $(CUDA_SHARED_OBJECTS)
	$(NVCC) -shared -cudart static -Xlinker -rpath,$(CUDA)/lib64 -o $@ $^ -ldl

# the compiler's report of registers and shared memory is kept beside the object
build/cuda/%.cu.o: cuda/%.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVCC_FLAGS) -MMD -MP $(SEE_cuda) -c -o $@ $< 2>$@.log || { cat $@.log; exit 1; }

build/cuda/%.c.o: src/%.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_COMMON) -fPIC -MMD -MP $(SEE_cuda) -c -o $@ $<

# instructions of cuda/mma.h, for a device (test/device/run)
build/test/test_mma: test/cuda_on_host/mma/test_mma.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVCC_FLAGS) $(SEE_cuda) -Icuda -cudart static -o $@ $< 2>$@.log || { cat $@.log; exit 1; }

# registers, shared memory and spills of every kernel; a spill is an error of the compilation
.PHONY: cuda-report
cuda-report: build/mmgpt_cuda.so
	@cat $(CUDA_OBJECTS:=.log) | c++filt | tools/cuda-report

HOST_SOURCES := $(wildcard test/cuda_on_host/*.cpp)
HOST_CUDA_SOURCES := $(filter-out cuda/cublas_load.cu,$(CUDA_SOURCES))
HOST_CUDA_FLAGS := -std=c++20 -g -mavx2 -mfma -ffp-contract=off -fPIC -fvisibility=hidden -Wall -Wextra \
	-Wno-unused-parameter -Wno-unknown-pragmas -isystem $(CUDA)/include -Itest/cuda_on_host -Icuda $(SEE_cuda)
HOST_FLAGS_plain := -O2
HOST_FLAGS_asan := -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
# kernels are instrumented, but not linked with the sanitizer: test/cuda_on_host/race.cpp is told
HOST_FLAGS_race := -O1 -DCUDA_ON_HOST_RACE
HOST_KERNEL_FLAGS_race := -fsanitize=thread
HOST_PROGRAMS := planted_bugs test_mma

.PHONY: cuda-on-host
cuda-on-host: $(foreach b,plain asan race,$(addprefix build/cuda_on_host/$(b)/,mmgpt_cuda.so $(HOST_PROGRAMS)))

define cuda_on_host_rules
build/cuda_on_host/$(1)/mmgpt_cuda.so: \
		$(patsubst %,build/cuda_on_host/$(1)/%.o,$(HOST_CUDA_SOURCES) $(HOST_SOURCES) \
			$(addprefix src/,$(addsuffix .c,$(CUDA_SHARED))))
	$(CXX) -shared -Wl,-z,defs -Wl,--allow-shlib-undefined $(filter -fsanitize=address%,$(HOST_FLAGS_$(1))) -o $$@ $$^ -ldl

# mistakes that the emulation has to find, and instructions that it has to get right
build/cuda_on_host/$(1)/planted_bugs: build/cuda_on_host/$(1)/test/cuda_on_host/planted/planted_bugs.cu.o
build/cuda_on_host/$(1)/test_mma: build/cuda_on_host/$(1)/test/cuda_on_host/mma/test_mma.cu.o
$(HOST_PROGRAMS:%=build/cuda_on_host/$(1)/%): \
		$(patsubst %,build/cuda_on_host/$(1)/test/cuda_on_host/%.cpp.o,\
			cuda_on_host mma_on_host runtime_on_host race)
	$(CXX) $(filter -fsanitize=address%,$(HOST_FLAGS_$(1))) -o $$@ $$^ -ldl

build/cuda_on_host/$(1)/%.cu.o: %.cu
	@mkdir -p $$(@D)
	$(CXX) -x c++ $(HOST_CUDA_FLAGS) $(HOST_FLAGS_$(1)) $(HOST_KERNEL_FLAGS_$(1)) -MMD -MP -c -o $$@ $$<

build/cuda_on_host/$(1)/%.cpp.o: %.cpp
	@mkdir -p $$(@D)
	$(CXX) $(HOST_CUDA_FLAGS) $(HOST_FLAGS_$(1)) -MMD -MP -c -o $$@ $$<

build/cuda_on_host/$(1)/%.c.o: %.c
	@mkdir -p $$(@D)
	$(CC) $(CFLAGS_COMMON) $(HOST_FLAGS_$(1)) -fPIC -MMD -MP $(SEE_cuda) -c -o $$@ $$<

-include $$(wildcard $(addprefix build/cuda_on_host/$(1)/,*/*.d */*/*.d */*/*/*.d))
endef
$(foreach b,plain asan race,$(eval $(call cuda_on_host_rules,$(b))))

-include $(CUDA_OBJECTS:.o=.d) $(CUDA_SHARED_OBJECTS:.o=.d)

# ---------------------------------------------------------------------------
# The extension: mmgpt.so from src/pg, src/wire and src/base, built by PGXS.
# Without pg_config only the engine can be built.
# ---------------------------------------------------------------------------

.DEFAULT_GOAL := all

ifeq ($(shell command -v $(PG_CONFIG) 2>/dev/null),)

.PHONY: all clean
all: engine
	@echo "pg_config was not found: the extension was left out (apt-get install postgresql-server-dev-all)"
clean:
	rm -rf build

else

EXTENSION = mmgpt
DATA = mmgpt--1.0.sql
MODULE_big = mmgpt
PG_OBJECT_FOLDER := build/pg
PG_SIDE_OBJECTS := $(patsubst src/%.c,$(PG_OBJECT_FOLDER)/%.o,$(wildcard src/pg/*.c))
PG_SHARED_OBJECTS := $(patsubst src/%.c,$(PG_OBJECT_FOLDER)/%.o,$(wildcard src/wire/*.c src/base/*.c))
OBJS = $(PG_SIDE_OBJECTS) $(PG_SHARED_OBJECTS)
REGRESS = install image model ask filter classify adapter jobs errors privileges settings
EXTRA_CLEAN = build

# nothing here is worth inlining into queries, so no LLVM bitcode is made
override with_llvm := no

PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

SEE_pg := -Isrc/base -Isrc/wire -Isrc/pg
PG_PATHS := -DMMGPT_PKGLIBDIR='"$(shell $(PG_CONFIG) --pkglibdir)"' -DMMGPT_SHAREDIR='"$(shell $(PG_CONFIG) --sharedir)"'
DEMO_MODEL_FILES := $(addprefix demo/model/,config.json tokenizer.model model.safetensors)
demo_model_folder = $(datadir)/extension/mmgpt/demo-model

$(PG_SIDE_OBJECTS): $(PG_OBJECT_FOLDER)/%.o: src/%.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(CFLAGS_SL) -fvisibility=hidden -MMD -MP $(SEE_pg) $(PG_PATHS) $(CPPFLAGS) -c -o $@ $<

# what both sides share is compiled without PostgreSQL's headers
$(PG_SHARED_OBJECTS): $(PG_OBJECT_FOLDER)/%.o: src/%.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(CFLAGS_SL) -fvisibility=hidden -Wno-missing-format-attribute -D_GNU_SOURCE -MMD -MP $(SEE_wire) -c -o $@ $<

-include $(OBJS:.o=.d)

all: engine

# The supervisor looks for the engine beside mmgpt.so, and for the demo model in
# the share directory of the same installation.
.PHONY: install-engine install-demo-model uninstall-engine
install: install-engine install-demo-model

install-engine: engine installdirs
	$(MKDIR_P) '$(DESTDIR)$(pkglibdir)' '$(DESTDIR)$(bindir)'
	$(INSTALL_PROGRAM) $(BUILD)/mmgpt-engine '$(DESTDIR)$(pkglibdir)/mmgpt-engine'
	ln -sfr '$(DESTDIR)$(pkglibdir)/mmgpt-engine' '$(DESTDIR)$(bindir)/mmgpt-engine'
	if [ -e build/mmgpt_cuda.so ]; then \
		$(INSTALL_SHLIB) build/mmgpt_cuda.so '$(DESTDIR)$(pkglibdir)/mmgpt_cuda.so'; fi

install-demo-model: installdirs
	$(MKDIR_P) '$(DESTDIR)$(demo_model_folder)'
	$(INSTALL_DATA) $(DEMO_MODEL_FILES) '$(DESTDIR)$(demo_model_folder)/'

uninstall: uninstall-engine

uninstall-engine:
	rm -f '$(DESTDIR)$(bindir)/mmgpt-engine' '$(DESTDIR)$(pkglibdir)/mmgpt-engine'
	rm -f '$(DESTDIR)$(pkglibdir)/mmgpt_cuda.so'
	rm -rf '$(DESTDIR)$(datadir)/extension/mmgpt'

endif

# ---------------------------------------------------------------------------
# Tests. test/run builds what it needs with these rules and counts the results.
#
#	make test					everything
#	make test SANITIZE=1		and the unit tests again, under sanitizers
#	make check-unit				the unit tests alone (SANITIZE=1, FAULTS=1)
#	make check-unit TEST=test_text
#	make fuzz					the fuzz programs, under sanitizers (FUZZ_TURNS, FUZZ_SEED)
# ---------------------------------------------------------------------------

TEST ?= test_*
UNIT_PROGRAMS := $(patsubst test/unit/%.c,$(BUILD)/test/%,$(wildcard test/unit/$(TEST).c))
UNIT_OBJECTS := $(filter-out $(BUILD)/cli/main.c.o,$(ENGINE_OBJECTS))

.PHONY: test unit-programs check-unit
test:
	@SANITIZE='$(SANITIZE)' test/run

unit-programs: $(UNIT_PROGRAMS)

check-unit: $(UNIT_PROGRAMS)
	@failed=0; for program in $^; do echo "# $$program"; $$program || failed=1; done; exit $$failed

$(BUILD)/test/%: test/unit/%.c $(UNIT_OBJECTS)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_COMMON) -MMD -MP -MF $@.d -MT $@ $(SEE_cli) -Itest/unit -o $@ $< $(UNIT_OBJECTS) $(ENGINE_LIBS)

# programs that read damaged files; of use with SANITIZE=1
FUZZ_PROGRAMS := $(patsubst test/fuzz/%.c,$(BUILD)/fuzz/%,$(wildcard test/fuzz/*.c))
FUZZ_TURNS ?= 2000
FUZZ_SEED ?= 1

.PHONY: fuzz fuzz-programs
fuzz-programs: $(FUZZ_PROGRAMS)

ifdef SANITIZE
fuzz: $(FUZZ_PROGRAMS)
	@for program in $^; do echo "# $$program"; $$program $(FUZZ_TURNS) $(FUZZ_SEED) || exit 1; done
else
fuzz:
	@$(MAKE) --no-print-directory fuzz SANITIZE=1
endif

$(BUILD)/fuzz/%: test/fuzz/%.c $(UNIT_OBJECTS)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_COMMON) -MMD -MP -MF $@.d -MT $@ $(SEE_cli) -Itest/unit -o $@ $< $(UNIT_OBJECTS) $(ENGINE_LIBS)

-include $(UNIT_PROGRAMS:=.d) $(FUZZ_PROGRAMS:=.d)

# ---------------------------------------------------------------------------
# The demo: a private server with pictures to ask about, and a gallery page.
# ---------------------------------------------------------------------------

.PHONY: demo demo-stop demo-model
demo:
	@demo/run

demo-stop:
	@demo/run stop

# two hours on two cores; taken up again where it was interrupted
demo-model:
	@demo/train
