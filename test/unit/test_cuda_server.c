/*
 * test_cuda_server.c - the engine as a server on a CUDA device: opened before the sandbox closes,
 * it answers as the processor does; when the device fails, the engine ends and answers nothing more.
 */
#include "adapter_client.h"
#include "cuda_pair.h"

/* Kernels before the emulated device breaks: in the middle of a question. */
#define FAILING_KERNEL "200"

#define PICTURE "test/golden/demo/pictures/00.png"

static ClientQuestion
picture_question(void)
{
	ClientQuestion question = {.kind = WIRE_KIND_CHAT, .prompt = "What is in the image?"};

	question.image = unit_read_file(PICTURE, &question.image_length);
	return question;
}

/* Ask an engine on a device; the answer's text, on the heap. */
static char *
answer_of(const char *device)
{
	ServedEngine engine = engine_serve_with(DEMO_MODEL, "--device", device);
	ClientQuestion question = picture_question();
	int			fd = client_open(&engine);
	ClientFrame frame = client_ask(fd, 1, &question);
	char	   *text = NULL;

	UNIT_EQUAL_INT(frame.header.type, WIRE_ANSWER);
	if (wire_has(&frame.fields, WIRE_FIELD_TEXT))
		text = strndup((const char *) frame.fields.bytes[WIRE_FIELD_TEXT],
					   frame.fields.length[WIRE_FIELD_TEXT]);
	free(frame.payload);
	free((void *) question.image);
	close(fd);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
	return text;
}

UNIT_TEST(a_served_device_answers_as_the_processor)
{
	char	   *on_cpu;
	char	   *on_cuda;

	if (getenv("MMGPT_CUDA_LIBRARY") == NULL)
		UNIT_SKIP(CUDA_SKIPPED);
	on_cpu = answer_of("cpu");
	on_cuda = answer_of("cuda");
	UNIT_CHECK(on_cpu != NULL && on_cpu[0] != '\0');
	UNIT_EQUAL_TEXT(on_cuda, on_cpu);
	free(on_cpu);
	free(on_cuda);
}

/* A number of the status' group "scheduler". */
static double
scheduler_status(const ServedEngine *engine, const char *key)
{
	ClientQuestion question = {.kind = WIRE_KIND_STATUS};
	int			fd = client_open(engine);
	ClientFrame frame = client_ask(fd, 1, &question);
	json_t	   *root = json_loadb((const char *) frame.fields.bytes[WIRE_FIELD_JSON],
								  frame.fields.length[WIRE_FIELD_JSON], 0, NULL);
	double		number = json_number_value(json_object_get(json_object_get(root, "scheduler"), key));

	json_decref(root);
	free(frame.payload);
	close(fd);
	return number;
}

/* Two questions with adapters of their own, one of them with a temperature; texts on the heap. */
static void
ask_with_two_adapters(const char *device, char *texts[2])
{
	static const char *const options[] = {
		"{\"max_tokens\": 24}",
		"{\"max_tokens\": 24, \"temperature\": 1.5, \"top_k\": 50, \"top_p\": 0.95, \"seed\": 4}"};
	ServedEngine engine = engine_serve_with(MODEL_A, "--device", device);
	AdapterVariant variants[2] = {variant_make(GOLDEN_ALPHA, NULL), variant_make(80, "q_proj")};
	char		model[DIGEST_HEX_SIZE];
	int			fds[2];

	client_model_digest(&engine, model);
	for (int i = 0; i < 2; i++)
	{
		fds[i] = client_open(&engine);
		send_adapted_question(fds[i], 1, 5, &variants[i], model, options[i], 0);
		expect_need(fds[i], 1);
	}
	for (int i = 0; i < 2; i++)
		send_files(fds[i], 1, &variants[i]);
	for (int i = 0; i < 2; i++)
	{
		texts[i] = read_answer(fds[i], 1);
		close(fds[i]);
		variant_free(&variants[i]);
	}
	/* they were computed together */
	if (strcmp(device, "cuda") == 0)
		UNIT_CHECK(scheduler_status(&engine, "rows_per_step") > 1.5);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

UNIT_TEST(two_adapters_in_one_batch_answer_as_on_the_processor)
{
	char	   *on_cpu[2];
	char	   *on_cuda[2];

	if (getenv("MMGPT_CUDA_LIBRARY") == NULL)
		UNIT_SKIP(CUDA_SKIPPED);
	ask_with_two_adapters("cpu", on_cpu);
	ask_with_two_adapters("cuda", on_cuda);
	for (int i = 0; i < 2; i++)
	{
		UNIT_CHECK(on_cpu[i][0] != '\0');
		UNIT_EQUAL_TEXT(on_cuda[i], on_cpu[i]);
		free(on_cpu[i]);
		free(on_cuda[i]);
	}
}

UNIT_TEST(a_device_that_fails_ends_the_engine_without_an_answer)
{
	ServedEngine engine;
	ClientQuestion question;
	ClientFrame frame;
	bool		started;
	int			fd;

	if (getenv("MMGPT_CUDA_LIBRARY") == NULL)
		UNIT_SKIP(CUDA_SKIPPED);
	if (strstr(getenv("MMGPT_CUDA_LIBRARY"), "cuda_on_host") == NULL)
		UNIT_SKIP("a real device is not broken on purpose");
	setenv("CUDA_ON_HOST_FAILS_AT", FAILING_KERNEL, 1);
	engine = engine_serve_with(DEMO_MODEL, "--device", "cuda");
	unsetenv("CUDA_ON_HOST_FAILS_AT");
	question = picture_question();
	fd = client_open(&engine);
	UNIT_CHECK(client_send_question(fd, 1, &question));
	frame = client_read_end(fd, 1, &started);
	UNIT_EQUAL_INT(frame.header.type, 0);
	UNIT_CHECK(started);
	free((void *) question.image);
	close(fd);
	UNIT_EQUAL_INT(engine_end(&engine), 1);
}

UNIT_TEST(a_model_that_does_not_fit_the_device_is_told_with_numbers)
{
	ServedEngine engine;
	ClientQuestion question;
	ClientFrame frame;
	char	   *detail;
	int			fd;

	if (getenv("MMGPT_CUDA_LIBRARY") == NULL)
		UNIT_SKIP(CUDA_SKIPPED);
	if (strstr(getenv("MMGPT_CUDA_LIBRARY"), "cuda_on_host") == NULL)
		UNIT_SKIP("a real device has more memory");
	setenv("CUDA_ON_HOST_MEMORY_MB", "50", 1);
	engine = engine_serve_with(DEMO_MODEL, "--device", "cuda");
	unsetenv("CUDA_ON_HOST_MEMORY_MB");
	question = picture_question();
	fd = client_open(&engine);
	frame = client_ask(fd, 1, &question);
	UNIT_EQUAL_INT(frame.header.type, WIRE_ERROR);
	detail = strndup((const char *) frame.fields.bytes[WIRE_FIELD_DETAIL],
					 frame.fields.length[WIRE_FIELD_DETAIL]);
	UNIT_CONTAINS(detail, " MB");
	free(detail);
	free(frame.payload);
	free((void *) question.image);
	close(fd);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

int
main(int argc, char **argv)
{
	serve_if_asked(argc, argv);
	return unit_run(argc, argv);
}
