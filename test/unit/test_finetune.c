/*
 * test_finetune.c - mmgpt-engine finetune as its users meet it: rows of a file in, an adapter, a
 * log and messages out.
 */
#include <sys/stat.h>

#include "cli_run.h"
#include "model_internal.h"

/* A folder of its own for each test, and the paths in it. */
typedef struct Folder
{
	char		path[64];
	char		data[96];
	char		adapter[96];
	char		log[96];
} Folder;

static Folder
make_folder(void)
{
	Folder		folder = {.path = "/tmp/mmgpt-finetune-XXXXXX"};

	if (mkdtemp(folder.path) == NULL)
		engine_bail(folder.path, NULL);
	snprintf(folder.data, sizeof(folder.data), "%s/rows.jsonl", folder.path);
	snprintf(folder.adapter, sizeof(folder.adapter), "%s/adapter", folder.path);
	snprintf(folder.log, sizeof(folder.log), "%s/steps.jsonl", folder.path);
	return folder;
}

static void
remove_folder(const Folder *folder)
{
	char		path[128];

	engine_remove_adapter(folder->adapter);
	unlink(folder->data);
	unlink(folder->log);
	snprintf(path, sizeof(path), "%s/picture.png", folder->path);
	unlink(path);
	rmdir(folder->path);
}

static void
write_rows(const Folder *folder, const char *rows)
{
	FILE	   *file = fopen(folder->data, "w");

	if (file == NULL || fputs(rows, file) < 0 || fclose(file) != 0)
		engine_bail(folder->data, NULL);
}

/* Rows of all forms, and four that can't be used; picture.png lies beside them. */
static const char rows_of_all_forms[] =
	"{\"image\": \"picture.png\", \"instruction\": \"What is this?\", \"response\": \"A dog.\"}\n"
	"\n"
	"{\"image\": null, \"instruction\": \"Name a fruit.\", \"input\": \"red\", \"response\": "
	"\"An apple.\", \"id\": 7}\n"
	"{\"image\": \"picture.png\", \"conversation\": [{\"role\": \"user\", \"content\": \"a\"}, "
	"{\"role\": \"assistant\", \"content\": \"b\"}]}\n"
	"{\"instruction\": \"Name a fruit.\"}\n"
	"{\"image\": \"missing.png\", \"instruction\": \"a\", \"response\": \"b\"}\n"
	"{\"instruction\": \n"
	"{\"pixels\": null, \"ids\": [1, 5, 6, 7], \"labels\": [-100, -100, 6, 7]}\n"
	"{\"pixels\": null, \"ids\": [1, 5, 6, 7], \"labels\": [-100, -100, 6]}\n";

static void
copy_picture(const Folder *folder)
{
	char		path[128];
	size_t		length;
	char	   *bytes = unit_read_file(MODEL_A "/images/img0.png", &length);
	FILE	   *file;

	snprintf(path, sizeof(path), "%s/picture.png", folder->path);
	file = fopen(path, "wb");
	if (file == NULL || fwrite(bytes, 1, length, file) != length || fclose(file) != 0)
		engine_bail(path, NULL);
	free(bytes);
}

/* Run finetune on the folder's rows with these options. */
static Outcome
finetune(const Folder *folder, const char *options, const char *extra, const char *value)
{
	const char *arguments[] = {"finetune", MODEL_A, "--data", folder->data, "--adapter-out",
		folder->adapter, "--log", folder->log, "--options", options, extra, value, NULL};

	return run(cli_finetune, "", arguments);
}

/* The log has one line a micro step, each with finite numbers or null. */
static void
check_log(const Folder *folder, int steps)
{
	char	   *text = unit_read_file(folder->log, NULL);
	char	   *line = strtok(text, "\n");
	int			step = 0;

	for (; line != NULL; line = strtok(NULL, "\n"))
	{
		json_t	   *json = json_loads(line, 0, NULL);

		UNIT_EQUAL_INT(json_integer_value(json_object_get(json, "step")), ++step);
		UNIT_CHECK(json_real_value(json_object_get(json, "loss_vision")) > 0);
		UNIT_CHECK(json_real_value(json_object_get(json, "loss_language")) > 0);
		UNIT_CHECK(json_real_value(json_object_get(json, "grad_norm")) > 0);
		UNIT_CHECK(json_is_number(json_object_get(json, "learning_rate")));
		json_decref(json);
	}
	UNIT_EQUAL_INT(step, steps);
	free(text);
}

UNIT_TEST(rows_of_all_forms_become_an_adapter)
{
	Folder		folder = make_folder();
	Outcome		outcome;
	Engine		engine;
	Adapter    *adapter;

	copy_picture(&folder);
	write_rows(&folder, rows_of_all_forms);
	outcome = finetune(&folder, "{\"r\": 2, \"micro_steps\": 3, \"warmup_steps\": 1}", NULL, NULL);
	UNIT_EQUAL_INT(outcome.status, 0);
	UNIT_EQUAL_TEXT(outcome.output, "");
	UNIT_CONTAINS(outcome.messages, "rows.jsonl line 5: the row has no response");
	UNIT_CONTAINS(outcome.messages, "rows.jsonl line 6: could not read file");
	UNIT_CONTAINS(outcome.messages, "rows.jsonl line 7: the line is not a JSON object");
	UNIT_CONTAINS(outcome.messages, "rows.jsonl line 9: the row has 4 ids and 3 labels");
	UNIT_CONTAINS(outcome.messages, "2 with pictures (1 distinct pictures), 2 of language, 0 held "
				  "out, 4 skipped");
	UNIT_CONTAINS(outcome.messages, "micro step 3/3");
	UNIT_CONTAINS(outcome.messages, "tokens/s");
	check_log(&folder, 3);
	forget(&outcome);
	engine = engine_open(MODEL_A, "auto", 1, 0);
	adapter = adapter_open(engine.model, folder.adapter, &engine.status);
	if (UNIT_CHECK(adapter != NULL))
		UNIT_NEAR(adapter->scale, 8, 0);
	adapter_close(engine.model, adapter);
	engine_close(&engine);
	remove_folder(&folder);
}

UNIT_TEST(a_training_may_end_at_its_first_unusable_row)
{
	Folder		folder = make_folder();
	Outcome		outcome;
	struct stat info;

	copy_picture(&folder);
	write_rows(&folder, rows_of_all_forms);
	outcome = finetune(&folder, "{\"unusable\": \"fail\"}", NULL, NULL);
	UNIT_EQUAL_INT(outcome.status, 1);
	UNIT_CONTAINS(outcome.messages, "rows.jsonl line 5: the row has no response");
	UNIT_CHECK(stat(folder.adapter, &info) != 0);
	forget(&outcome);
	remove_folder(&folder);
}

UNIT_TEST(rows_of_which_none_can_be_used_fail)
{
	Folder		folder = make_folder();
	Outcome		outcome;

	write_rows(&folder, "{}\n[]\n");
	outcome = finetune(&folder, "{}", NULL, NULL);
	UNIT_EQUAL_INT(outcome.status, 1);
	UNIT_CONTAINS(outcome.messages, "none of the 2 rows can be used");
	forget(&outcome);
	write_rows(&folder, "\n");
	outcome = finetune(&folder, "{}", NULL, NULL);
	UNIT_EQUAL_INT(outcome.status, 1);
	UNIT_CONTAINS(outcome.messages, "there are no rows to train on");
	forget(&outcome);
	remove_folder(&folder);
}

/* Training on from the result of an earlier one, with rows held out. */
UNIT_TEST(a_training_goes_on_from_an_adapter)
{
	Folder		first = make_folder();
	Folder		second = make_folder();
	Outcome		outcome;
	char	   *text;

	for (int i = 0; i < 2; i++)
	{
		copy_picture(i == 0 ? &first : &second);
		write_rows(i == 0 ? &first : &second, rows_of_all_forms);
	}
	outcome = finetune(&first, "{\"r\": 2, \"alpha\": 5, \"micro_steps\": 2}", NULL, NULL);
	UNIT_EQUAL_INT(outcome.status, 0);
	forget(&outcome);
	outcome = finetune(&second, "{\"micro_steps\": 2, \"validation\": 0.5}", "--initial-adapter",
					   first.adapter);
	UNIT_EQUAL_INT(outcome.status, 0);
	UNIT_CONTAINS(outcome.messages, "adapter: r 2, alpha 5");
	UNIT_CONTAINS(outcome.messages, "2 held out");
	forget(&outcome);
	text = unit_read_file(second.log, NULL);
	UNIT_CONTAINS(text, "\"validation_loss_vision\": ");
	UNIT_CONTAINS(text, "\"validation_loss_language\": ");
	free(text);
	outcome = finetune(&second, "{\"r\": 3}", "--initial-adapter", first.adapter);
	UNIT_EQUAL_INT(outcome.status, 1);
	UNIT_CONTAINS(outcome.messages, "option \"r\" differs from the initial adapter's");
	forget(&outcome);
	remove_folder(&first);
	remove_folder(&second);
}

UNIT_TEST(what_cannot_be_done_is_said)
{
	Folder		folder = make_folder();

	copy_picture(&folder);
	write_rows(&folder, rows_of_all_forms);
	CHECK_FAILS(cli_finetune, 2, "--data", "finetune", MODEL_A, "--adapter-out", folder.adapter);
	CHECK_FAILS(cli_finetune, 2, "--adapter-out", "finetune", MODEL_A, "--data", folder.data);
	CHECK_FAILS(cli_finetune, 2, "--initial-adapter", "finetune", MODEL_A, "--data", folder.data,
				"--adapter-out", folder.adapter, "--adapter", "/tmp");
	CHECK_FAILS(cli_finetune, 1, "unknown option \"rank\"", "finetune", MODEL_A, "--data",
				folder.data, "--adapter-out", folder.adapter, "--options", "{\"rank\": 2}");
	CHECK_FAILS(cli_finetune, 1, "/nonexistent", "finetune", MODEL_A, "--data", "/nonexistent",
				"--adapter-out", folder.adapter);
	CHECK_FAILS(cli_finetune, 1, "/nonexistent", "finetune", MODEL_A, "--data", folder.data,
				"--adapter-out", folder.adapter, "--initial-adapter", "/nonexistent");
	CHECK_FAILS(cli_finetune, 1, "training needs", "finetune", MODEL_A, "--data", folder.data,
				"--adapter-out", folder.adapter, "--memory-limit", "1");
	CHECK_FAILS(cli_finetune, 1, "/nonexistent", "finetune", MODEL_A, "--data", folder.data,
				"--adapter-out", folder.adapter, "--log", "/nonexistent/log");
	CHECK_FAILS(cli_finetune, 1, "/nonexistent/adapter", "finetune", MODEL_A, "--data",
				folder.data, "--adapter-out", "/nonexistent/adapter");
	remove_folder(&folder);
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
