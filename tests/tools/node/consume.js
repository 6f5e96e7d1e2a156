// node consume.js BOOTSTRAP GROUP TOPIC JSON: a member of a group until SIGTERM. One JSON line for each event, in the
// form of tests/support/members.py. The JSON holds kafkajs' own consumer options.
const { Kafka, logLevel } = require('kafkajs')
const codecs = require('./codecs')

const say = (event) => process.stdout.write(JSON.stringify(event) + '\n')

const main = async () => {
  const [bootstrap, groupId, topic, options] = process.argv.slice(2)
  await codecs.register()
  const kafka = new Kafka({
    clientId: 'kafkajs-test',
    brokers: [bootstrap],
    logLevel: logLevel.NOTHING,
    retry: { initialRetryTime: 100, maxRetryTime: 1000, retries: 30 },
  })
  const consumer = kafka.consumer({
    groupId,
    sessionTimeout: 2000,
    heartbeatInterval: 200,
    rebalanceTimeout: 5000,
    maxWaitTimeInMs: 500,
    ...JSON.parse(options),
  })
  consumer.on(consumer.events.GROUP_JOIN, ({ payload }) =>
    say({ assignment: payload.memberAssignment[topic] || [] }),
  )
  consumer.on(consumer.events.REBALANCING, () => say({ assignment: [] }))
  consumer.on(consumer.events.CRASH, ({ payload }) => say({ error: String(payload.error) }))
  await consumer.connect()
  await consumer.subscribe({ topics: [topic], fromBeginning: true })
  await consumer.run({
    autoCommitInterval: 100,
    eachMessage: async ({ partition, message }) => {
      const headers = Object.entries(message.headers || {}).map(([name, value]) => [name, value && value.toString()])
      const key = message.key && message.key.toString()
      say({ record: [partition, Number(message.offset), message.value && message.value.toString()], key, headers })
    },
  })
  process.on('SIGTERM', async () => {
    await consumer.disconnect()
    process.exit(0)
  })
}

main().catch((error) => {
  say({ error: String(error.stack) })
  process.exit(1)
})
