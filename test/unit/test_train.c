/*
 * test_train.c - LoRA training against the original's runs, and what must not change its result.
 *
 * The runs were made by the original's own training loop (golden README, Facts 6): losses and
 * gradient norms of every micro step, gradients of the first, and the matrices after
 * some optimizer steps. Tolerances are that page's.
 *
 * Beyond them: gradients are right in both media modes and with several pictures, for any set of
 * targets; and the adapter that comes out gives the engine the loss that the trainer saw.
 */
#include "train_cases.h"

#define LOSS_TOLERANCE 1e-4
#define GRADIENT_TOLERANCE 1e-4
/* of a norm, relative */
#define NORM_TOLERANCE 1e-4
/* of matrices after 2 and after all optimizer steps */
#define EARLY_TOLERANCE 2e-5
#define LATE_TOLERANCE 1e-4

static const char *const run_names[] = {"upstream_targets", "accumulation2", "with_mlp_targets",
	"unclipped"};

/* ---- the original's runs ---- */

/* Check all gradients against "grad_before_clip.micro<k>.". */
static void
check_gradients(const TrainRun *run, const Trainer *trainer, int micro)
{
	char		prefix[64];
	float	   *values = malloc(sizeof(float) << 20);
	AdapterMatrix matrix;
	int			place = 0;
	int			count = 0;

	snprintf(prefix, sizeof(prefix), "grad_before_clip.micro%d.", micro);
	while (each_matrix(trainer, &place, &matrix))
	{
		UNIT_CHECK(trainer_read_gradient(trainer, &matrix, values));
		if (!UNIT_NEAR_ALL(values, run_values(run, prefix, &matrix),
						   (size_t) matrix.rows * (size_t) matrix.columns, GRADIENT_TOLERANCE))
			printf("# %s, layer %d, %s, %c\n", run->name, matrix.layer,
				   lora_target_path(matrix.target), matrix.b ? 'B' : 'A');
		count++;
	}
	UNIT_EQUAL_INT(count, json_array_size(json_object_get(run->record, "trainable_parameters")));
	free(values);
}

/* Check all matrices, read from the adapter's file, against "after_step<k>.". */
static void
check_adapter(Engine *engine, const TrainRun *run, const Trainer *trainer, int step)
{
	AdapterFiles files = trainer_adapter(engine, trainer);
	char	   *copy = malloc(files.tensors_size);
	char		prefix[32];
	GoldenFile	file;
	AdapterMatrix matrix;
	int			place = 0;

	memcpy(copy, files.tensors, files.tensors_size);
	file = golden_parse(copy, "the adapter");
	snprintf(prefix, sizeof(prefix), "after_step%d.", step);
	while (each_matrix(trainer, &place, &matrix))
	{
		char		name[LORA_NAME_SIZE + 64];
		const float *values;
		int			count;

		snprintf(name, sizeof(name), "layers.%d.%s%s.lora_%c.weight", matrix.layer,
				 matrix.target < LORA_TO_Q ? "decoder_layer." : "",
				 lora_target_path(matrix.target), matrix.b ? 'B' : 'A');
		values = golden_values(&file, "base_model.model.model.", name, &count);
		UNIT_EQUAL_INT(count, matrix.rows * matrix.columns);
		if (!UNIT_NEAR_ALL(values, run_values(run, prefix, &matrix), (size_t) count,
						   step == 2 ? EARLY_TOLERANCE : LATE_TOLERANCE))
			printf("# %s, %s\n", run->name, name);
	}
	golden_close(&file);
}

/* Losses, norm and rate of a micro step. */
static void
check_step(const TrainRun *run, const Trainer *trainer)
{
	TrainerReport report;
	int			i;
	int			accumulation = (int) run_number(run, "accumulation");
	double		norm;

	trainer_report(trainer, &report);
	i = report.micro_step - 1;
	norm = run_listed(run, "grad_norm_before_clip", i);
	UNIT_NEAR(report.loss_image, run_listed(run, "vision_loss", i), LOSS_TOLERANCE);
	UNIT_NEAR(report.loss_language, run_listed(run, "language_loss", i), LOSS_TOLERANCE);
	UNIT_NEAR(report.gradient_norm, norm, NORM_TOLERANCE * norm);
	UNIT_NEAR(report.learning_rate, run_listed(run, "learning_rate_of_step", i / accumulation),
			  1e-12);
}

static void
check_run(const char *name, const char *set)
{
	TrainRun	run = run_open(name);
	Engine		engine = engine_open(MODEL_A, set, 2, 0);
	TrainOptions options = run_options(&run);
	Trainer    *trainer = run_trainer(&engine, &run, &options, &no_limit);
	TrainerReport report = {0};
	int			gradients = options.accumulation == 2 ? 2 : 1;	/* micro steps that have them */
	int			last = (int) run_number(&run, "optimizer_steps");

	while (report.micro_step < report.micro_steps || report.micro_steps == 0)
	{
		int			optimizer_steps = report.optimizer_steps;

		if (!trainer_run_to(&engine, trainer, TRAINER_GRADIENTS))
			break;
		if (report.micro_step < gradients)
			check_gradients(&run, trainer, report.micro_step);
		if (!trainer_run_to(&engine, trainer, TRAINER_STEPPED))
			break;
		check_step(&run, trainer);
		trainer_report(trainer, &report);
		if (report.optimizer_steps > optimizer_steps &&
			(report.optimizer_steps == 2 || report.optimizer_steps == last))
			check_adapter(&engine, &run, trainer, report.optimizer_steps);
	}
	UNIT_EQUAL_INT(report.micro_step, run_number(&run, "micro"));
	UNIT_EQUAL_INT(report.optimizer_steps, last);
	UNIT_CHECK(!trainer_run_to(&engine, trainer, TRAINER_STEPPED));
	trainer_free(trainer);
	engine_close(&engine);
	run_close(&run);
}

UNIT_TEST(runs_of_the_original)
{
	const char *set;

	FOR_EACH_INSTRUCTION_SET(set)
		for (int i = 0; i < 4; i++)
			check_run(run_names[i], set);
}

UNIT_TEST(the_first_step_has_rate_zero_and_changes_nothing)
{
	TrainRun	run = run_open("upstream_targets");
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);
	TrainOptions options = run_options(&run);
	Trainer    *trainer = run_trainer(&engine, &run, &options, &no_limit);
	AdapterFiles before = trainer_adapter(&engine, trainer);
	AdapterFiles after;

	trainer_run_to(&engine, trainer, TRAINER_STEPPED);
	after = trainer_adapter(&engine, trainer);
	UNIT_CHECK(same_adapters(&before, &after));
	trainer_run_to(&engine, trainer, TRAINER_STEPPED);
	after = trainer_adapter(&engine, trainer);
	UNIT_CHECK(!same_adapters(&before, &after));
	trainer_free(trainer);
	engine_close(&engine);
	run_close(&run);
}

/* ---- clipping ---- */

/* The norm of all gradients as they are now. */
static double
gradient_norm(const Trainer *trainer)
{
	float	   *values = malloc(sizeof(float) << 20);
	AdapterMatrix matrix;
	int			place = 0;
	double		sum = 0;

	while (each_matrix(trainer, &place, &matrix))
	{
		UNIT_CHECK(trainer_read_gradient(trainer, &matrix, values));
		for (int i = 0; i < matrix.rows * matrix.columns; i++)
			sum += (double) values[i] * (double) values[i];
	}
	free(values);
	return sqrt(sum);
}

UNIT_TEST(gradients_are_clipped_at_every_micro_step)
{
	TrainRun	run = run_open("unclipped");
	TrainOptions options = run_options(&run);
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);
	double		norm = run_listed(&run, "grad_norm_before_clip", 0) / 2;

	options.accumulation = 2;
	for (int i = 0; i < 3; i++)
	{
		/* above the norm, just below, and far below */
		static const double factors[] = {1.01, 0.9, 0.1};
		Trainer    *trainer;
		TrainerReport report;

		options.clip = factors[i] * norm;
		trainer = run_trainer(&engine, &run, &options, &no_limit);
		trainer_run_to(&engine, trainer, TRAINER_STEPPED);
		trainer_report(trainer, &report);
		UNIT_NEAR(report.gradient_norm, norm, 1e-5 * norm);
		UNIT_NEAR(gradient_norm(trainer), i == 0 ? norm : options.clip, 1e-4 * norm);
		UNIT_EQUAL_INT(report.optimizer_steps, 0);
		trainer_free(trainer);
	}
	engine_close(&engine);
	run_close(&run);
}

/* ---- gradients of single targets ---- */

/* Check that two trainers have the same gradients for all matrices of the first, bit by bit. */
static void
check_same_gradients(const Trainer *trainer, const Trainer *reference)
{
	float	   *values = malloc(sizeof(float) << 20);
	float	   *expected = malloc(sizeof(float) << 20);
	AdapterMatrix matrix;
	int			place = 0;

	while (each_matrix(trainer, &place, &matrix))
	{
		size_t		bytes = (size_t) matrix.rows * (size_t) matrix.columns * sizeof(float);

		UNIT_CHECK(trainer_read_gradient(trainer, &matrix, values));
		UNIT_CHECK(trainer_read_gradient(reference, &matrix, expected));
		if (!UNIT_CHECK(memcmp(values, expected, bytes) == 0))
			printf("# layer %d, %s, %c\n", matrix.layer, lora_target_path(matrix.target),
				   matrix.b ? 'B' : 'A');
	}
	free(values);
	free(expected);
}

/* A fresh adapter on some targets, brought to the gradients of its first micro step. */
static Trainer *
train_targets(Engine *engine, const TrainRun *run, unsigned targets)
{
	TrainOptions options = run_options(run);
	Trainer    *trainer;

	options.targets = targets;
	options.seed = 3;
	trainer = trainer_create(engine->model, &options, NULL, &engine->status);
	if (trainer == NULL)
		engine_bail("trainer", &engine->status);
	add_batches(engine, trainer, run, "vision_batches", true);
	add_batches(engine, trainer, run, "language_batches", false);
	if (!trainer_start(trainer, 0, &engine->status))
		engine_bail("start", &engine->status);
	trainer_run_to(engine, trainer, TRAINER_GRADIENTS);
	return trainer;
}

/*
 * With B zero an adapter changes no value, so each target alone must have the gradients that it
 * has among all others: wherever the way back ends, it ends late enough.
 */
UNIT_TEST(each_target_alone_has_the_gradients_it_has_among_all)
{
	TrainRun	run = run_open("upstream_targets");
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);
	Trainer    *all = train_targets(&engine, &run, (1u << LORA_TARGETS) - 1);

	for (int target = 0; target < LORA_TARGETS; target++)
	{
		Trainer    *alone = train_targets(&engine, &run, 1u << target);

		check_same_gradients(alone, all);
		trainer_free(alone);
	}
	trainer_free(all);
	engine_close(&engine);
	run_close(&run);
}

UNIT_TEST(first_values_are_lora_s)
{
	TrainRun	run = run_open("upstream_targets");
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);
	Trainer    *trainer = train_targets(&engine, &run, 1u << LORA_Q_PROJ);
	float	   *values = trainer->parameters.values.data;
	Tensor		b = lora_matrix(trainer, trainer->parameters.values, 0, LORA_Q_PROJ, true);
	Tensor		a = lora_matrix(trainer, trainer->parameters.values, 0, LORA_Q_PROJ, false);
	double		bound = 1 / sqrt(96.0);
	double		sum = 0;
	double		largest = 0;

	UNIT_CHECK(a.data == values);
	for (int i = 0; i < a.rows * a.columns; i++)
	{
		sum += (double) values[i];
		largest = fabs((double) values[i]) > largest ? fabs((double) values[i]) : largest;
	}
	UNIT_CHECK(largest <= bound && largest > 0.95 * bound);
	UNIT_NEAR(sum / (a.rows * a.columns), 0, 0.1 * bound);
	for (int i = 0; i < b.rows * b.columns; i++)
		UNIT_CHECK(((float *) b.data)[i] == 0.0f);
	trainer_free(trainer);
	engine_close(&engine);
	run_close(&run);
}

/* ---- both media modes, several pictures ---- */

/* Mean loss of a row's labels by the engine that answers questions. */
static double
engine_loss(Engine *engine, const StoredRow *row, const Picture *pictures, Adapter *adapter)
{
	int			vocabulary = engine->config->decoder.vocabulary;
	float	   *logits = engine_forward(engine, pictures, row->picture_count, adapter, row->ids,
										row->count, 256);
	double		loss = 0;

	for (int i = 1; i < row->count; i++)
	{
		const float *at = logits + (size_t) (i - 1) * (size_t) vocabulary;
		double		sum = 0;

		if (row->labels[i] < 0)
			continue;
		for (int j = 0; j < vocabulary; j++)
			sum += exp((double) at[j]);
		loss += (log(sum) - (double) at[row->labels[i]]) / row->trained;
	}
	free(logits);
	return loss;
}

/* The values of an adapter for a finite difference: a smooth function of the place, moved. */
typedef struct MovedValues
{
	double		step;			/* along the direction */
} MovedValues;

static double
direction(const AdapterMatrix *matrix, size_t i)
{
	return sin(0.7 * (double) i + matrix->layer + 3 * (int) matrix->target + 11 * matrix->b);
}

static void
give_moved(void *argument, const AdapterMatrix *matrix, float *values)
{
	const MovedValues *moved = argument;

	for (size_t i = 0; i < (size_t) matrix->rows * (size_t) matrix->columns; i++)
		values[i] = (float) (0.05 * cos(1.3 * (double) i + matrix->layer + (int) matrix->target) +
							 moved->step * direction(matrix, i));
}

/* A trainer on the dialogue about two pictures, its adapter moved; its loss is returned. */
static Trainer *
train_two_pictures(Engine *engine, const ForwardCases *cases, double step)
{
	static const char options_json[] =
		"{\"r\": 3, \"alpha\": 6, \"target_modules\": [\"q_proj\", \"k_proj\", \"v_proj\", "
		"\"o_proj\", \"gate_proj\", \"up_proj\", \"down_proj\", \"to_q\", \"to_kv\", \"to_out\", "
		"\"ff.1\", \"ff.3\"], \"micro_steps\": 1}";
	char		directory[] = "/tmp/mmgpt-train-XXXXXX";
	AdapterShape shape = {3, 6, (1u << LORA_TARGETS) - 1};
	MovedValues moved = {step};
	AdapterSource initial = {.directory = directory};
	const json_t *item = find_case(cases, "two_images");
	Picture		pictures[4];
	TrainingRow row = {.pictures = pictures,
					   .picture_count = case_pictures(cases, item, pictures)};
	TrainOptions options;
	Trainer    *trainer;

	row.ids = row.labels = golden_values(&cases->tensors, "two_images", ".ids", &row.count);
	train_options_defaults(&options);
	save_adapter(engine, &shape, give_moved, &moved, directory);
	if (!train_options_read(options_json, strlen(options_json), &options, &engine->status) ||
		(trainer = trainer_create(engine->model, &options, &initial, &engine->status)) == NULL ||
		!trainer_add_row(trainer, &row, &engine->status) ||
		!trainer_start(trainer, 0, &engine->status))
		engine_bail("trainer", &engine->status);
	engine_remove_adapter(directory);
	trainer_run_to(engine, trainer, TRAINER_GRADIENTS);
	return trainer;
}

/* The gradient's share along the direction. */
static double
along_direction(const Trainer *trainer)
{
	float	   *values = malloc(sizeof(float) << 20);
	AdapterMatrix matrix;
	int			place = 0;
	double		sum = 0;

	while (each_matrix(trainer, &place, &matrix))
	{
		UNIT_CHECK(trainer_read_gradient(trainer, &matrix, values));
		for (size_t i = 0; i < (size_t) matrix.rows * (size_t) matrix.columns; i++)
			sum += (double) values[i] * direction(&matrix, i);
	}
	free(values);
	return sum;
}

static double
loss_at(Engine *engine, const ForwardCases *cases, double step)
{
	Trainer    *trainer = train_two_pictures(engine, cases, step);
	TrainerReport report;

	trainer_report(trainer, &report);
	trainer_free(trainer);
	UNIT_CHECK(isnan(report.loss_language));
	return report.loss_image;
}

UNIT_TEST(gradients_in_both_media_modes_with_two_pictures)
{
	ForwardCases cases = open_cases();

	for (int mode = 0; mode < 2; mode++)
	{
		Engine		engine = engine_open(MODEL_A, "auto", 2, mode);
		Trainer    *trainer = train_two_pictures(&engine, &cases, 0);
		double		step = 1e-3;
		double		measured = (loss_at(&engine, &cases, step) - loss_at(&engine, &cases, -step)) /
			(2 * step);
		Picture		pictures[4];
		TrainerReport report;

		UNIT_CHECK(fabs(measured) > 0.1);
		UNIT_NEAR(along_direction(trainer), measured, 0.01 * fabs(measured));
		case_pictures(&cases, find_case(&cases, "two_images"), pictures);
		trainer_report(trainer, &report);
		UNIT_NEAR(report.loss_image,
				  engine_loss(&engine, &trainer->store.rows[0], pictures,
							  trainer->parameters.adapter), 1e-5);
		trainer_free(trainer);
		engine_close(&engine);
	}
	close_cases(&cases);
}

/* ---- the adapter in use ---- */

/* The loss over the row held out is what the engine has for that row with the adapter's files. */
UNIT_TEST(what_was_trained_is_what_answers)
{
	TrainRun	run = run_open("with_mlp_targets");
	TrainOptions options = run_options(&run);
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);
	char		directory[] = "/tmp/mmgpt-train-XXXXXX";
	Picture		pictures[3];
	Trainer    *trainer;
	TrainerReport report;
	AdapterFiles files;
	Adapter    *adapter;

	options.validation = 0.2;
	options.micro_steps = 6;
	trainer = run_trainer(&engine, &run, &options, &no_limit);
	while (trainer_run_to(&engine, trainer, TRAINER_STEPPED))
		trainer_report(trainer, &report);
	UNIT_CHECK(report.validated);
	UNIT_EQUAL_INT(report.rows_validation, 2);
	files = trainer_adapter(&engine, trainer);
	if (mkdtemp(directory) == NULL || !adapter_files_save(&files, directory, &engine.status) ||
		(adapter = adapter_open(engine.model, directory, &engine.status)) == NULL)
		engine_bail(directory, &engine.status);
	for (int kind = 0; kind < ROW_KINDS; kind++)
	{
		const StoredRow *row = &trainer->store.rows[trainer->store.streams[kind].held_out[0]];

		for (int i = 0; i < row->picture_count; i++)
		{
			char		name[8];

			/* distinct pictures were stored in the order of their first use */
			snprintf(name, sizeof(name), "img%d", row->pictures[i]);
			pictures[i] = (Picture) {NULL, golden_values(&run.pixels, "pixels.", name, NULL)};
		}
		UNIT_NEAR(kind == ROWS_IMAGE ? report.validation_image : report.validation_language,
				  engine_loss(&engine, row, pictures, adapter), 1e-5);
	}
	adapter_close(engine.model, adapter);
	engine_remove_adapter(directory);
	trainer_free(trainer);
	engine_close(&engine);
	run_close(&run);
}

/* Train in a format as the golden run did in f32; losses and gradients stay that near. */
static void
check_format(const char *set, WeightFormat format, double loss, double gradient)
{
	TrainRun	run = run_open("with_mlp_targets");
	Engine		engine = engine_open_format(MODEL_A, set, 2, 0, format);
	TrainOptions options = run_options(&run);
	Trainer    *trainer = run_trainer(&engine, &run, &options, &no_limit);

	while (trainer_run_to(&engine, trainer, TRAINER_STEPPED))
	{
		TrainerReport report;
		int			i;

		trainer_report(trainer, &report);
		i = report.micro_step - 1;
		UNIT_NEAR(report.loss_image, run_listed(&run, "vision_loss", i), loss);
		UNIT_NEAR(report.loss_language, run_listed(&run, "language_loss", i), loss);
		UNIT_NEAR(report.gradient_norm / run_listed(&run, "grad_norm_before_clip", i), 1,
				  gradient);
	}
	trainer_free(trainer);
	engine_close(&engine);
	run_close(&run);
}

/* In narrow formats the same runs go nearly the same way, downwards: LoRA over such base weights. */
UNIT_TEST(training_in_narrow_formats_stays_near_f32)
{
	const char *set;

	FOR_EACH_INSTRUCTION_SET(set)
	{
		check_format(set, WEIGHTS_BF16, 0.15, 0.05);
		check_format(set, WEIGHTS_Q8, 0.15, 0.05);
		check_format(set, WEIGHTS_Q4, 1.0, 0.2);	/* of losses between 13 and 4 */
	}
}

UNIT_TEST(each_distinct_picture_is_encoded_once)
{
	TrainRun	run = run_open("upstream_targets");
	TrainOptions options = run_options(&run);
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);
	Trainer    *trainer = run_trainer(&engine, &run, &options, &no_limit);
	TrainerReport report;

	trainer_run_to(&engine, trainer, TRAINER_STEPPED);
	trainer_report(trainer, &report);
	UNIT_EQUAL_INT(report.rows_image, 10);
	UNIT_EQUAL_INT(report.pictures, 3);
	UNIT_EQUAL_INT(report.pictures_encoded, 3);
	trainer_free(trainer);
	engine_close(&engine);
	run_close(&run);
}

/* ---- streams ---- */

UNIT_TEST(every_row_passes_by_once_an_epoch)
{
	TrainRun	run = run_open("upstream_targets");
	TrainOptions options = run_options(&run);
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);
	int			orders[3][10];

	options.shuffle = true;
	for (int seed = 0; seed < 2; seed++)
	{
		Trainer    *trainer;
		RowStream  *stream;

		options.seed = (uint64_t) seed;
		trainer = run_trainer(&engine, &run, &options, &no_limit);
		stream = &trainer->store.streams[ROWS_IMAGE];
		for (int epoch = 0; epoch < 2; epoch++)
		{
			int			seen = 0;

			for (int i = 0; i < 10; i++)
			{
				int			row = row_stream_at(stream, &options, ROWS_IMAGE, epoch * 10 + i);

				orders[seed + epoch][i] = row;
				seen |= 1 << row;
			}
			UNIT_EQUAL_INT(seen, 1023);
		}
		/* a position gives the same row again, also backwards */
		UNIT_EQUAL_INT(row_stream_at(stream, &options, ROWS_IMAGE, 13), orders[seed + 1][3]);
		UNIT_EQUAL_INT(row_stream_at(stream, &options, ROWS_IMAGE, 3),
					   seed == 0 ? orders[0][3] : row_stream_at(stream, &options, ROWS_IMAGE, 3));
		trainer_free(trainer);
	}
	UNIT_CHECK(memcmp(orders[0], orders[1], sizeof(orders[0])) != 0);
	UNIT_CHECK(memcmp(orders[1], orders[2], sizeof(orders[0])) != 0);
	engine_close(&engine);
	run_close(&run);
}

/* Either kind of rows may be absent. */
UNIT_TEST(one_kind_of_rows_is_enough)
{
	TrainRun	run = run_open("upstream_targets");
	TrainOptions options = run_options(&run);
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);

	options.micro_steps = 2;
	for (int kind = 0; kind < ROW_KINDS; kind++)
	{
		Trainer *trainer = trainer_create(engine.model, &options, NULL, &engine.status);
		TrainerReport report;

		add_batches(&engine, trainer, &run, kind == ROWS_IMAGE ? "vision_batches"
					: "language_batches", kind == ROWS_IMAGE);
		if (!trainer_start(trainer, 0, &engine.status))
			engine_bail("start", &engine.status);
		trainer_run_to(&engine, trainer, TRAINER_STEPPED);
		trainer_report(trainer, &report);
		UNIT_CHECK(isnan(kind == ROWS_IMAGE ? report.loss_language : report.loss_image));
		UNIT_CHECK(isfinite(kind == ROWS_IMAGE ? report.loss_image : report.loss_language));
		UNIT_CHECK(isfinite(report.gradient_norm) && report.gradient_norm > 0);
		trainer_free(trainer);
	}
	engine_close(&engine);
	run_close(&run);
}

/* Only gated blocks trained, and rows without pictures: no gradient anywhere, and no NaN. */
UNIT_TEST(language_rows_give_gated_blocks_no_gradient)
{
	TrainRun	run = run_open("upstream_targets");
	TrainOptions options = run_options(&run);
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);
	Trainer    *trainer;
	TrainerReport report;

	options.targets = 1u << LORA_TO_KV | 1u << LORA_FF_1;
	options.micro_steps = 3;
	trainer = trainer_create(engine.model, &options, NULL, &engine.status);
	add_batches(&engine, trainer, &run, "language_batches", false);
	if (!trainer_start(trainer, 0, &engine.status))
		engine_bail("start", &engine.status);
	while (trainer_run_to(&engine, trainer, TRAINER_STEPPED))
	{
		trainer_report(trainer, &report);
		UNIT_CHECK(report.gradient_norm == 0);
		UNIT_CHECK(isfinite(report.loss_language));
	}
	trainer_free(trainer);
	engine_close(&engine);
	run_close(&run);
}

UNIT_TEST(a_training_that_diverges_ends_with_a_reason)
{
	TrainRun	run = run_open("unclipped");
	TrainOptions options = run_options(&run);
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);
	Trainer    *trainer = run_trainer(&engine, &run, &options, &no_limit);
	TrainerEvent event = TRAINER_WORKING;

	trainer_run_to(&engine, trainer, TRAINER_GRADIENTS);
	((float *) trainer->parameters.gradient.data)[7] = INFINITY;
	UNIT_CHECK(!trainer_step_slice(trainer, &event, &engine.status));
	UNIT_CONTAINS(engine.status.message, "micro step 1 are not finite");
	trainer_free(trainer);
	engine_close(&engine);
	run_close(&run);
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
