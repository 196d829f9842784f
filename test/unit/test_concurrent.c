/*
 * test_concurrent.c - 32 clients at once, end to end: what each of them is answered has the same
 * bits as on an engine that does nothing else, with one thread and steps of few tokens, in every
 * format. Requests are of all kinds, with and without picture, with different adapters.
 */
#include <poll.h>

#include "adapter_client.h"

#define MODEL_A "test/golden/model-a"
#define CLIENTS 32
#define EACH 3					/* requests of a client, all on their way at once */
#define REQUESTS (CLIENTS * EACH)
#define PICTURES 3
#define ADAPTERS 2
#define ROLES 3

/* All that the clients share. */
typedef struct Scene
{
	char		model[DIGEST_HEX_SIZE];
	AdapterVariant adapters[ADAPTERS];
	char	   *pictures[PICTURES];
	size_t		lengths[PICTURES];
} Scene;

static Scene
open_scene(void)
{
	Scene		scene = {.adapters = {variant_make(GOLDEN_ALPHA, NULL), variant_make(80, NULL)}};

	for (int i = 0; i < PICTURES; i++)
	{
		char		path[64];

		snprintf(path, sizeof(path), MODEL_A "/images/img%d.png", i);
		scene.pictures[i] = unit_read_file(path, &scene.lengths[i]);
	}
	return scene;
}

static void
close_scene(Scene *scene)
{
	for (int i = 0; i < PICTURES; i++)
		free(scene->pictures[i]);
	for (int i = 0; i < ADAPTERS; i++)
		variant_free(&scene->adapters[i]);
}

/* What is asked, by number; prompts of 20 tokens and of many. */
static const struct
{
	WireKind	kind;
	const char *prompt;
	const char *options;
	bool		picture;
	bool		labels;
} asked[] = {
	{WIRE_KIND_CAPTION, "brief", "{\"max_tokens\": 12}", true, false},
	{WIRE_KIND_COUNT, "dogs", NULL, true, false},
	{WIRE_KIND_SCORE, "Is there a cat?", NULL, true, false},
	{WIRE_KIND_CHAT_TURN, "What is this?", "{\"max_tokens\": 20, \"logprobs\": true}", true, false},
	{WIRE_KIND_CHAT_TURN, "Tell me a story of a long way home through the hills and over the "
		"river, of a bridge that was not there, of a boat that was, and of all who waited for the "
		"end.",
		"{\"max_tokens\": 20, \"logprobs\": true, \"temperature\": 1, \"seed\": 4}", false, false},
	{WIRE_KIND_CLASSIFY, NULL, NULL, true, true},
	{WIRE_KIND_CHAT, "Name a fruit.", "{\"max_tokens\": 8, \"num_beams\": 3}", false, false},
	{WIRE_KIND_CLASSIFY_MULTI, NULL, NULL, true, true},
};

#define KINDS ((int) (sizeof(asked) / sizeof(asked[0])))

/* The adapter of a request; NULL: none. */
static const AdapterVariant *
request_adapter(const Scene *scene, int number)
{
	int			adapter = number / KINDS % (ADAPTERS + 1);

	return adapter < ADAPTERS ? &scene->adapters[adapter] : NULL;
}

static void
send_request(int fd, const Scene *scene, int number)
{
	static const char *const labels[] = {"dog", "a red bus", "dog house", "tree", NULL};
	const AdapterVariant *adapter = request_adapter(scene, number);
	int			kind = number % KINDS;
	int			picture = number / 5 % PICTURES;
	size_t		size = scene->lengths[picture] + 65536;
	uint8_t    *bytes = malloc(size);
	WireWriter	writer;

	wire_writer_begin(&writer, bytes, size);
	wire_write_u32(&writer, WIRE_FIELD_FLAGS, 0);
	wire_write_u32(&writer, WIRE_FIELD_KIND, asked[kind].kind);
	wire_write_u32(&writer, WIRE_FIELD_DATABASE, 1);
	wire_write_u32(&writer, WIRE_FIELD_ROLE, (uint32_t) (1 + number / EACH % ROLES));
	if (asked[kind].prompt != NULL)
		wire_write_bytes(&writer, WIRE_FIELD_PROMPT, asked[kind].prompt,
						 strlen(asked[kind].prompt));
	if (asked[kind].options != NULL)
		wire_write_bytes(&writer, WIRE_FIELD_OPTIONS, asked[kind].options,
						 strlen(asked[kind].options));
	if (asked[kind].labels)
		client_write_labels(&writer, labels);
	if (adapter != NULL)
	{
		wire_write_bytes(&writer, WIRE_FIELD_ADAPTER, adapter->digest, 2 * DIGEST_SIZE);
		wire_write_bytes(&writer, WIRE_FIELD_ADAPTER_MODEL, scene->model, 2 * DIGEST_SIZE);
		wire_write_bytes(&writer, WIRE_FIELD_ADAPTER_NAME, "mine", 4);
	}
	if (asked[kind].picture)
		wire_write_bytes(&writer, WIRE_FIELD_IMAGE, scene->pictures[picture],
						 scene->lengths[picture]);
	UNIT_CHECK(!writer.overflow &&
			   client_send_frame(fd, WIRE_REQUEST, (uint64_t) number + 1, writer.bytes,
								 writer.used));
	free(bytes);
}

/* Read a frame: bring the adapter that is wanted, keep an end. True for an end. */
static bool
take_frame(int fd, const Scene *scene, ClientFrame ends[REQUESTS])
{
	ClientFrame frame = client_read_frame(fd);
	int			number = (int) frame.header.id - 1;

	if (frame.header.type == WIRE_NEED)
		send_files(fd, frame.header.id, request_adapter(scene, number));
	else if (frame.header.type != WIRE_STARTED)
	{
		if (frame.header.type != WIRE_ANSWER)
			UNIT_FAIL("request %d ended with a frame of type %u", number, frame.header.type);
		if (number >= 0 && number < REQUESTS)
			ends[number] = frame;
		return true;
	}
	free(frame.payload);
	return false;
}

/* One request after another. */
static void
ask_alone(const ServedEngine *engine, const Scene *scene, ClientFrame ends[REQUESTS])
{
	int			fd = client_open(engine);

	for (int i = 0; i < REQUESTS; i++)
	{
		send_request(fd, scene, i);
		while (!take_frame(fd, scene, ends))
			;
	}
	close(fd);
}

/* Rows of a step in the mean, since the engine began. */
static double
rows_per_step(int fd)
{
	ClientQuestion question = {.kind = WIRE_KIND_STATUS};
	ClientFrame frame = client_ask(fd, 900000, &question);
	json_t	   *root = json_loadb((const char *) frame.fields.bytes[WIRE_FIELD_JSON],
								  frame.fields.length[WIRE_FIELD_JSON], 0, NULL);
	double		rows = json_number_value(
		json_object_get(json_object_get(root, "scheduler"), "rows_per_step"));

	json_decref(root);
	free(frame.payload);
	return rows;
}

/* All clients at once. */
static void
ask_together(const ServedEngine *engine, const Scene *scene, ClientFrame ends[REQUESTS])
{
	struct pollfd fds[CLIENTS];
	int			left = REQUESTS;

	for (int i = 0; i < CLIENTS; i++)
		fds[i] = (struct pollfd) {.fd = client_open(engine), .events = POLLIN};
	for (int i = 0; i < REQUESTS; i++)
		send_request(fds[i / EACH].fd, scene, i);
	while (left > 0 && poll(fds, CLIENTS, CLIENT_PATIENCE_SECONDS * 1000) > 0)
		for (int i = 0; i < CLIENTS; i++)
			if (fds[i].revents != 0)
				left -= take_frame(fds[i].fd, scene, ends);
	UNIT_EQUAL_INT(left, 0);
	/* how many depends on how fast requests are prepared; alone it is little more than one */
	UNIT_CHECK(rows_per_step(fds[0].fd) > 3);
	for (int i = 0; i < CLIENTS; i++)
		close(fds[i].fd);
}

/* Answers of an engine with these options; alone or together. */
static void
ask_engine(const char *const *options, bool together, Scene *scene, ClientFrame ends[REQUESTS])
{
	ServedEngine engine = engine_serve_options(MODEL_A, options);

	client_model_digest(&engine, scene->model);
	memset(ends, 0, REQUESTS * sizeof(ClientFrame));
	(together ? ask_together : ask_alone) (&engine, scene, ends);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

/* Ask alone, and together of an engine with these options, and compare. */
static void
check_company(const char *format, const char *const *together)
{
	const char *const alone[] = {"--weights", format, "--threads", "1", "--step-tokens", "16",
		NULL};
	Scene		scene = open_scene();
	ClientFrame expected[REQUESTS];
	ClientFrame ends[REQUESTS];

	ask_engine(alone, false, &scene, expected);
	ask_engine(together, true, &scene, ends);
	for (int i = 0; i < REQUESTS; i++)
	{
		if (ends[i].header.length != expected[i].header.length || ends[i].payload == NULL ||
			memcmp(ends[i].payload, expected[i].payload, ends[i].header.length) != 0)
			UNIT_FAIL("%s, request %d: another answer in company than alone", format, i);
		free(ends[i].payload);
		free(expected[i].payload);
	}
	close_scene(&scene);
}

static void
check_format(const char *format)
{
	check_company(format, (const char *const[]) {"--weights", format, "--threads", "3", NULL});
}

UNIT_TEST(company_threads_and_pieces_change_no_bit_in_f32)
{
	check_format("f32");
}

UNIT_TEST(nor_in_bf16)
{
	check_format("bf16");
}

UNIT_TEST(nor_in_8_bits)
{
	check_format("q8");
}

UNIT_TEST(nor_in_4_bits)
{
	check_format("q4");
}

/* Whether the model's memory is enough. */
static bool
is_loaded(const ServedEngine *engine)
{
	ClientQuestion tokens = {.kind = WIRE_KIND_TOKEN_COUNT, .prompt = "x"};
	int			fd = client_open(engine);
	ClientFrame frame = client_ask(fd, 1, &tokens);
	bool		loaded = frame.header.type == WIRE_ANSWER;

	free(frame.payload);
	close(fd);
	return loaded;
}

/* The least --memory-limit-mb that the model loads with: room for one context and little more. */
static const char *
least_limit(void)
{
	static char text[16];

	for (int megabytes = 8; megabytes < 200; megabytes++)
	{
		ServedEngine engine;
		bool		loaded;

		snprintf(text, sizeof(text), "%d", megabytes);
		engine = engine_serve_options(MODEL_A, (const char *const[]) {
			"--memory-limit-mb", text, "--weights", "f32", NULL});
		loaded = is_loaded(&engine);
		engine_end(&engine);
		if (loaded)
			break;
	}
	return text;
}

UNIT_TEST(without_room_for_all_they_wait_and_none_fails)
{
	const char *const options[] = {"--memory-limit-mb", least_limit(), "--weights", "f32", NULL};
	ClientQuestion large = {.kind = WIRE_KIND_CHAT, .prompt = "Tell me a story.",
		.options = "{\"max_tokens\": 1900, \"num_beams\": 16}"};
	ServedEngine engine;
	ClientFrame frame;
	Status		status;
	int			fd;

	check_company("f32", options);
	/* what would not fit alone is told so */
	engine = engine_serve_options(MODEL_A, options);
	fd = client_open(&engine);
	frame = client_ask(fd, 1, &large);
	if (UNIT_EQUAL_INT(frame.header.type, WIRE_ERROR))
	{
		wire_get_status(&frame.fields, &status);
		UNIT_EQUAL_INT(status.code, STATUS_OUT_OF_MEMORY);
		UNIT_CONTAINS(status.message, "exceeds the engine's memory for keys and values");
		UNIT_CONTAINS(status.detail, "It needs ");
		UNIT_CONTAINS(status.hint, "mmgpt.memory_limit");
	}
	free(frame.payload);
	close(fd);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

int
main(int argc, char **argv)
{
	serve_if_asked(argc, argv);
	return unit_run(argc, argv);
}
