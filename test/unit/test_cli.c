/*
 * test_cli.c - the commands of mmgpt-engine as their users meet them: what arrives on standard
 * output, what on standard error, and the exit status. Arrays in NumPy's format too.
 *
 * Each command runs in a child process whose standard streams are files.
 */
#include <math.h>

#include <fcntl.h>

#include "cli_run.h"
#include "npy.h"

UNIT_TEST(every_command_has_help)
{
	static const struct
	{
		const char *name;
		CommandFunction run;
	} commands[] = {
		{"info", cli_info}, {"preprocess", cli_preprocess}, {"tokenize", cli_tokenize},
		{"detokenize", cli_detokenize}, {"forward", cli_forward}, {"generate", cli_generate},
		{"serve", cli_serve}, {"finetune", cli_finetune}, {"quantize", cli_quantize},
		{"bench", cli_bench},
	};

	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
	{
		const char *arguments[] = {commands[i].name, "--help", NULL};
		Outcome		outcome = run(commands[i].run, "", arguments);

		UNIT_EQUAL_INT(outcome.status, 0);
		UNIT_CONTAINS(outcome.output, commands[i].name);
		UNIT_EQUAL_TEXT(outcome.messages, "");
		forget(&outcome);
	}
}

UNIT_TEST(wrong_usage_is_status_2_and_names_the_word)
{
	CHECK_FAILS(cli_info, 2, "argument", "info");
	CHECK_FAILS(cli_info, 2, "surplus", "info", MODEL_A, "surplus");
	CHECK_FAILS(cli_forward, 2, "--bogus", "forward", MODEL_A, "--bogus", "1");
	CHECK_FAILS(cli_forward, 2, "--ids", "forward", MODEL_A, "--ids");
	CHECK_FAILS(cli_forward, 2, "-o", "forward", MODEL_A, "--ids", "1 2");
	CHECK_FAILS(cli_info, 2, "\"many\"", "info", MODEL_A, "--threads", "many");
	CHECK_FAILS(cli_info, 2, "\"2\"", "info", MODEL_A, "--attend-previous=2");
	CHECK_FAILS(cli_info, 2, "\"bf8\"", "info", MODEL_A, "--weights", "bf8");
	CHECK_FAILS(cli_bench, 2, "\"1,x\"", "bench", MODEL_A, "--vision", "--batch", "1,x");
	CHECK_FAILS(cli_bench, 2, "--train", "bench", MODEL_A);
	CHECK_FAILS(cli_bench, 2, "--shape", "bench", "--train");
	CHECK_FAILS(cli_bench, 2, "--shape", "bench", MODEL_A, "--train", "--shape", "1b");
	CHECK_FAILS(cli_bench, 2, "\"9b\"", "bench", "--train", "--shape", "9b");
	CHECK_FAILS(cli_bench, 1, "nowhere.json", "bench", "--train", "--shape", "nowhere.json");
	CHECK_FAILS(cli_bench, 2, "context", "bench", MODEL_A, "--train", "--tokens", "999999");
	CHECK_FAILS(cli_bench, 1, "\"rank\"", "bench", MODEL_A, "--train", "--options", "{\"rank\": 1}");
	CHECK_FAILS(cli_preprocess, 2, "\"ugly\"", "preprocess", MODEL_A, MODEL_A "/images/img0.png",
				"--image-rules", "ugly", "-o", "/dev/null");
	CHECK_FAILS(cli_generate, 2, "--prompt", "generate", MODEL_A);
	CHECK_FAILS(cli_generate, 2, "--prompt", "generate", MODEL_A, "--prompt", "a", "--ids", "1");
}

UNIT_TEST(quantize_wants_a_format_and_a_directory)
{
	CHECK_FAILS(cli_quantize, 2, "--format", "quantize", MODEL_A);
	CHECK_FAILS(cli_quantize, 2, "\"q5\"", "quantize", MODEL_A, "--format", "q5", "-o",
				"/nonexistent");
}

UNIT_TEST(what_is_not_supported_is_status_2)
{
	CHECK_FAILS(cli_info, 2, "no CUDA library", "info", MODEL_A, "--device", "cuda:1");
}

UNIT_TEST(failures_are_status_1_and_name_their_cause)
{
	CHECK_FAILS(cli_info, 1, "/nonexistent/config.json", "info", "/nonexistent");
	CHECK_FAILS(cli_info, 1, "/nonexistent", "info", MODEL_A, "--adapter", "/nonexistent");
	CHECK_FAILS(cli_forward, 1, "603", "forward", MODEL_A, "--ids", "1 603", "-o", "/dev/null");
	CHECK_FAILS(cli_forward, 1, "\"x", "forward", MODEL_A, "--ids", "1 x", "-o", "/dev/null");
	CHECK_FAILS(cli_forward, 1, "/nonexistent", "forward", MODEL_A, "--ids", "1", "-o",
				"/nonexistent/a.npy");
	CHECK_FAILS(cli_forward, 1, "config.json", "forward", MODEL_A, "--ids", "1 601", "--image",
				MODEL_A "/config.json", "-o", "/dev/null");
	CHECK_FAILS(cli_generate, 1, "max_tokns", "generate", MODEL_A, "--ids", "1", "--options",
				"{\"max_tokns\":3}");
	CHECK_FAILS(cli_generate, 1, "element 1", "generate", MODEL_A, "--prompt", "a", "--history",
				"[{\"role\":\"user\"}]");
}

/* ---- texts and ids ---- */

UNIT_TEST(tokenize_and_detokenize_are_lines_of_json)
{
	CHECK_PRINTS(cli_tokenize, "\"\"\n\"a\\u0000b </s>\"\n",
				 "[1]\n[1, 260, 3, 542, 527, 578, 577, 534, 580]\n", "tokenize", MODEL_A);
	CHECK_PRINTS(cli_tokenize, "\"</s>\"", "[1, 2]\n", "tokenize", MODEL_A, "--parse-special");
	CHECK_PRINTS(cli_detokenize, "[]\n[1, 260, 3, 542, 527, 578, 577, 534, 580, 2, 601]\n",
				 "\"\"\n\"a\\u0000b </s>\"\n", "detokenize", MODEL_A);
}

UNIT_TEST(wrong_lines_are_named)
{
	static const struct
	{
		CommandFunction run;
		const char *input;
		const char *line;
	} cases[] = {
		{cli_tokenize, "\"good\"\nnonsense\n", "line 2"},
		{cli_tokenize, "[1]\n", "line 1"},
		{cli_detokenize, "[1]\n[1]\n[1, 99999]\n", "line 3"},
		{cli_detokenize, "[1.5]\n", "line 1"},
		{cli_detokenize, "[-1]\n", "line 1"},
		{cli_detokenize, "\"text\"\n", "line 1"},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		const char *arguments[] = {"lines", MODEL_A, NULL};
		Outcome		outcome = run(cases[i].run, cases[i].input, arguments);

		UNIT_EQUAL_INT(outcome.status, 1);
		UNIT_CONTAINS(outcome.messages, cases[i].line);
		forget(&outcome);
	}
}

/* ---- formats ---- */

UNIT_TEST(info_tells_the_format)
{
	static const char *const formats[][2] = {{"stored", "f32"}, {"bf16", "bf16"}, {"f32", "f32"},
											  {"q8", "q8"}, {"q4", "q4"}};

	for (int i = 0; i < 5; i++)
	{
		const char *arguments[] = {"info", MODEL_A, "--weights", formats[i][0], NULL};
		Outcome		outcome = run(cli_info, "", arguments);
		json_t	   *info = json_loads(outcome.output, 0, NULL);

		UNIT_EQUAL_INT(outcome.status, 0);
		UNIT_EQUAL_TEXT(json_string_value(json_object_get(info, "weight_format")), formats[i][1]);
		json_decref(info);
		forget(&outcome);
	}
}

UNIT_TEST(bench_trains_a_model_of_any_shape)
{
	const char *arguments[] = {"bench", "--shape", MODEL_A "/config.json", "--train", "--picture",
							   "--batch", "1,2", "--tokens", "20", "--seconds", "1", "--json",
							   "--options", "{\"r\": 4}", NULL};
	Outcome		outcome = run(cli_bench, "", arguments);
	json_t	   *result = json_loads(outcome.output, 0, NULL);
	json_t	   *train = json_object_get(result, "train");

	UNIT_EQUAL_INT(outcome.status, 0);
	UNIT_EQUAL_TEXT(json_string_value(json_object_get(result, "weight_format")), "bf16");
	UNIT_CHECK(json_object_get(result, "vision") == NULL);
	UNIT_EQUAL_INT(json_array_size(train), 2);
	for (size_t i = 0; i < json_array_size(train); i++)
	{
		json_t	   *entry = json_array_get(train, i);
		json_t	   *speed = json_object_get(entry, "tokens_per_second");
		double		seconds = json_real_value(json_object_get(
			json_object_get(entry, "seconds_per_step"), "median"));
		double		tokens = i == 0 ? 20 : 40;

		UNIT_CHECK(json_integer_value(json_object_get(entry, "steps")) >= 3);
		UNIT_CHECK(fabs(json_real_value(json_object_get(speed, "median")) * seconds - tokens) <
				   1e-6 * tokens);
		UNIT_CHECK(json_integer_value(json_object_get(entry, "peak_memory")) > 1 << 20);
	}
	json_decref(result);
	forget(&outcome);
}

/* More sequences than a model has room for unless it is told. */
UNIT_TEST(bench_has_room_for_any_batch)
{
	char		path[] = "/tmp/mmgpt-shape-XXXXXX.json";
	const char *arguments[] = {"bench", "--shape", path, "--prompt", "64", "--batch", "33",
							   "--seconds", "1", "--json", NULL};
	json_t	   *shape = json_load_file(MODEL_A "/config.json", 0, NULL);
	int			fd = mkstemps(path, 5);
	Outcome		outcome;

	close(fd);
	json_object_set_new(shape, "max_position_embeddings", json_integer(64));
	UNIT_CHECK(json_dump_file(shape, path, 0) == 0);
	json_decref(shape);
	outcome = run(cli_bench, "", arguments);
	UNIT_EQUAL_INT(outcome.status, 0);
	forget(&outcome);
	unlink(path);
}

UNIT_TEST(bench_measures_prompts_and_answers)
{
	const char *arguments[] = {"bench", MODEL_A, "--prompt", "20", "--generate=3", "--depth=40",
							   "--batch", "1,2", "--seconds", "1", "--weights=q4", "--json", NULL};
	Outcome		outcome = run(cli_bench, "", arguments);
	json_t	   *result = json_loads(outcome.output, 0, NULL);
	json_t	   *text = json_object_get(result, "text");

	UNIT_EQUAL_INT(outcome.status, 0);
	UNIT_EQUAL_TEXT(json_string_value(json_object_get(result, "weight_format")), "q4");
	UNIT_EQUAL_INT(json_array_size(text), 4);
	for (size_t i = 0; i < json_array_size(text); i++)
	{
		json_t	   *entry = json_array_get(text, i);
		json_t	   *speed = json_object_get(entry, "tokens_per_second");

		UNIT_EQUAL_TEXT(json_string_value(json_object_get(entry, "what")),
						i % 2 == 0 ? "prompt" : "generate");
		UNIT_EQUAL_INT(json_integer_value(json_object_get(entry, "batch")), i / 2 + 1);
		UNIT_EQUAL_INT(json_integer_value(json_object_get(entry, "tokens")), i % 2 == 0 ? 20 : 3);
		UNIT_EQUAL_INT(json_integer_value(json_object_get(entry, "depth")), i % 2 == 0 ? 0 : 40);
		UNIT_CHECK(json_number_value(json_object_get(speed, "best")) > 0);
	}
	json_decref(result);
	forget(&outcome);
}

UNIT_TEST(bench_measures_each_batch_size)
{
	const char *arguments[] = {"bench", MODEL_A, "--vision", "--batch", "1,3", "--seconds", "1",
							   "--weights=bf16", "--json", NULL};
	Outcome		outcome = run(cli_bench, "", arguments);
	json_t	   *result = json_loads(outcome.output, 0, NULL);
	json_t	   *vision = json_object_get(result, "vision");

	UNIT_EQUAL_INT(outcome.status, 0);
	UNIT_EQUAL_TEXT(json_string_value(json_object_get(result, "weight_format")), "bf16");
	UNIT_EQUAL_INT(json_array_size(vision), 2);
	for (size_t i = 0; i < json_array_size(vision); i++)
	{
		json_t	   *entry = json_array_get(vision, i);
		json_t	   *speed = json_object_get(entry, "images_per_second");

		UNIT_EQUAL_INT(json_integer_value(json_object_get(entry, "batch")), i == 0 ? 1 : 3);
		UNIT_CHECK(json_integer_value(json_object_get(entry, "runs")) >= 3);
		UNIT_CHECK(json_real_value(json_object_get(speed, "median")) > 0);
		UNIT_CHECK(json_real_value(json_object_get(speed, "best")) >=
				   json_real_value(json_object_get(speed, "median")));
	}
	json_decref(result);
	forget(&outcome);
}

/* ---- answers ---- */

UNIT_TEST(generate_answers_with_json)
{
	const char *arguments[] = {"generate", MODEL_A, "--ids=1, 5, 6", "--options",
		"{\"max_tokens\":5}", NULL};
	Outcome		outcome = run(cli_generate, "", arguments);
	json_t	   *answer = json_loads(outcome.output, 0, NULL);

	UNIT_EQUAL_INT(outcome.status, 0);
	UNIT_EQUAL_INT(json_array_size(json_object_get(answer, "ids")), 5);
	UNIT_CHECK(json_is_string(json_object_get(answer, "text")));
	UNIT_EQUAL_TEXT(json_string_value(json_object_get(answer, "finish")), "length");
	json_decref(answer);
	forget(&outcome);
}

UNIT_TEST(generate_tells_how_sure_it_is)
{
	const char *arguments[] = {"generate", MODEL_A, "--ids=1, 5, 6", "--options",
		"{\"max_tokens\": 5, \"logprobs\": true}", NULL};
	Outcome		outcome = run(cli_generate, "", arguments);
	json_t	   *answer = json_loads(outcome.output, 0, NULL);
	const json_t *ids = json_object_get(answer, "ids");
	const json_t *logprobs = json_object_get(answer, "logprobs");

	UNIT_EQUAL_INT(json_array_size(ids), 5);
	UNIT_EQUAL_INT(json_array_size(logprobs), 5);
	for (size_t i = 0; i < json_array_size(logprobs); i++)
	{
		const json_t *token = json_array_get(logprobs, i);

		UNIT_CHECK(json_equal(json_object_get(token, "id"), json_array_get(ids, i)));
		UNIT_CHECK(json_is_string(json_object_get(token, "token")));
		UNIT_CHECK(json_number_value(json_object_get(token, "logprob")) < 0);
	}
	json_decref(answer);
	forget(&outcome);
}

UNIT_TEST(stop_strings_end_a_continuation_of_ids)
{
	const char *arguments[] = {"generate", MODEL_A, "--ids", "1 5 6", "--options",
							   "{\"max_tokens\":20,\"stop\":\"u\"}", NULL};
	Outcome		outcome = run(cli_generate, "", arguments);
	json_t	   *answer = json_loads(outcome.output, 0, NULL);

	UNIT_EQUAL_TEXT(json_string_value(json_object_get(answer, "finish")), "stop");
	UNIT_CHECK(json_array_size(json_object_get(answer, "ids")) < 20);
	UNIT_CHECK(strchr(json_string_value(json_object_get(answer, "text")), 'u') == NULL);
	json_decref(answer);
	forget(&outcome);
}

/* ---- arrays ---- */

UNIT_TEST(arrays_survive_a_file)
{
	char		path[] = "/tmp/mmgpt-cli-XXXXXX";
	float		values[6] = {0.0f, -1.5f, 3e38f, 1e-40f, INFINITY, 7.0f};
	NpyArray	array = {TYPE_F32, 2, {3, 2}, values};
	NpyArray	again;
	Arena	   *arena = arena_create();
	Status		status;

	status_clear(&status);
	close(make_file(path));
	UNIT_CHECK(npy_write(path, &array, &status));
	if (UNIT_CHECK(npy_read(path, arena, &again, &status)))
	{
		UNIT_EQUAL_INT(again.type, TYPE_F32);
		UNIT_EQUAL_INT(again.dimensions, 2);
		UNIT_EQUAL_INT(again.shape[0], 3);
		UNIT_EQUAL_INT(again.shape[1], 2);
		UNIT_CHECK(memcmp(again.data, values, sizeof(values)) == 0);
	}
	unlink(path);
	arena_free(arena);
}

/* Write a version-1.0 file with this header and that many bytes of data, and read it. */
static bool
read_made(const char *header, size_t data)
{
	static const char zeros[64];
	char		path[] = "/tmp/mmgpt-cli-XXXXXX";
	int			file = make_file(path);
	unsigned char prefix[10] = "\x93NUMPY\x01";
	Arena	   *arena = arena_create();
	NpyArray	array;
	Status		status;
	bool		good;

	status_clear(&status);
	prefix[8] = (unsigned char) strlen(header);
	if (write(file, prefix, 10) != 10 ||
		write(file, header, strlen(header)) != (ssize_t) strlen(header) ||
		write(file, zeros, data) != (ssize_t) data)
		engine_bail(path, NULL);
	close(file);
	good = npy_read(path, arena, &array, &status);
	if (!good)
		UNIT_CONTAINS(status.message, path);
	unlink(path);
	arena_free(arena);
	return good;
}

UNIT_TEST(damaged_arrays_are_refused)
{
	UNIT_CHECK(read_made("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }\n", 16));
	UNIT_CHECK(read_made("{'descr': '|u1', 'fortran_order': False, 'shape': (5,), }\n", 5));
	UNIT_CHECK(!read_made("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }\n", 15));
	UNIT_CHECK(!read_made("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2), }\n", 16));
	UNIT_CHECK(!read_made("{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }\n", 16));
	UNIT_CHECK(!read_made("{'descr': '>f4', 'fortran_order': False, 'shape': (4,), }\n", 16));
	UNIT_CHECK(!read_made("{'descr': '<f4', 'fortran_order': False, 'shape': (-4,), }\n", 16));
	UNIT_CHECK(!read_made(
		"{'descr': '<f4', 'fortran_order': False, 'shape': (65536, 65536, 65536, 65536), }\n", 16));
	UNIT_CHECK(!read_made("{'descr': '<f4', 'fortran_order': False, 'shape': (4", 16));
	UNIT_CHECK(!read_made("{'descr': '<f4'}", 16));
	UNIT_CHECK(!read_made("", 0));
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
